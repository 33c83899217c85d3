#include "data/prepare_scan.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>

#include "core/check.h"
#include "data/ordered_pipeline.h"

namespace lockstep {
namespace {

constexpr int64_t kValidationDocuments = 20;  // fewer expected: cut the stream instead
constexpr int64_t kManyDocuments = 100'000;
constexpr int64_t kInvalidBytesTolerated = 10;  // one in so many

struct DocumentFacts {
  XXH128_hash_t hash;
  int64_t bytes;
  bool blank;
};

// What a worker thread finds out about a block. A document of plain text comes in pieces, so its
// hash is left to the thread that sees them in order.
struct BlockFacts {
  TextBlock block;
  std::vector<DocumentFacts> documents;  // of JSON lines
  size_t nul = std::string::npos;        // of plain text: the first NUL
  int64_t invalid_bytes = 0;
  bool blank = false;
};

BlockFacts examine(TextBlock block, const PrepareConfig& config) {
  BlockFacts facts;
  if (block.file->json_lines) {
    for (const std::string& text : json_documents(block, config.field)) {
      facts.documents.push_back({XXH3_128bits(text.data(), text.size()),
                                 static_cast<int64_t>(text.size()), is_blank(text)});
    }
    block.text.clear();
  } else {
    facts.blank = is_blank(block.text);
    if (config.tokenizer != "bytes") {  // to which all bytes are alike
      facts.nul = block.text.find('\0');
      facts.invalid_bytes = invalid_utf8_bytes(block.text);
    }
  }
  facts.block = std::move(block);
  return facts;
}

// A set of 128-bit hashes, in open addressing. 256 tables that grow one at a time, so that growing
// does not double the memory.
class HashSet {
 public:
  // False when it is there already.
  bool insert(XXH128_hash_t hash) {
    Table& table = tables_[hash.high64 >> 56];
    if (table.used * 8 >= table.slots.size() * 7) grow(table);
    return put(table, hash);
  }

 private:
  struct Table {
    std::vector<XXH128_hash_t> slots;  // all zeros: free
    size_t used = 0;
  };
  static bool is_free(XXH128_hash_t hash) { return hash.low64 == 0 && hash.high64 == 0; }
  static bool put(Table& table, XXH128_hash_t hash) {
    if (is_free(hash)) hash.low64 = 1;
    const size_t mask = table.slots.size() - 1;
    for (size_t i = hash.low64 & mask;; i = (i + 1) & mask) {
      XXH128_hash_t& slot = table.slots[i];
      if (XXH128_isEqual(slot, hash) != 0) return false;
      if (is_free(slot)) {
        slot = hash;
        table.used++;
        return true;
      }
    }
  }
  static void grow(Table& table) {
    Table larger;
    larger.slots.resize(std::max<size_t>(16, table.slots.size() * 2));
    for (const XXH128_hash_t hash : table.slots) {
      if (!is_free(hash)) put(larger, hash);
    }
    table = std::move(larger);
  }
  std::array<Table, 256> tables_;
};

class Scanner {
 public:
  explicit Scanner(const PrepareConfig& config) : config_(config), state_(XXH3_createState()) {}

  void add(BlockFacts facts) {
    if (facts.block.file->json_lines) {
      for (const DocumentFacts& document : facts.documents) add_document(document);
    } else {
      add_piece(facts);
    }
  }

  InputPlan finish() {
    if (plan_.kept() == 0) {
      throw DataError(
          "the input holds no text: {}{} is empty or white space", config_.inputs.front().string(),
          config_.inputs.size() > 1 ? fmt::format(" and {} more", config_.inputs.size() - 1) : "");
    }
    const double fraction = config_.validation_fraction;
    if (fraction == 0) {
      plan_.validation.assign(plan_.dropped.size(), false);
      return std::move(plan_);
    }
    const double many = static_cast<double>(kValidationDocuments) / fraction;
    plan_.by_document =
        static_cast<double>(plan_.kept()) >= std::min(many, static_cast<double>(kManyDocuments));
    if (!plan_.by_document) cut_stream(fraction);
    return std::move(plan_);
  }

 private:
  struct FreeState {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };

  void add_piece(const BlockFacts& facts) {
    const TextBlock& block = facts.block;
    if (block.document_begins) {
      XXH3_128bits_reset(state_.get());
      piece_ = {{}, 0, true};
      invalid_bytes_ = 0;
    }
    const std::string path = block.file->path.string();
    if (facts.nul != std::string::npos) {
      throw DataError(
          "{} is not text: a NUL byte at byte {}\nUTF-16 text: convert it with "
          "`iconv -f UTF-16 -t UTF-8`; to learn bytes as they are: --tokenizer bytes.",
          path, piece_.bytes + static_cast<int64_t>(facts.nul));
    }
    XXH3_128bits_update(state_.get(), block.text.data(), block.text.size());
    piece_.bytes += static_cast<int64_t>(block.text.size());
    piece_.blank = piece_.blank && facts.blank;
    invalid_bytes_ += facts.invalid_bytes;
    if (invalid_bytes_ * kInvalidBytesTolerated > piece_.bytes) {
      throw DataError(
          "{} is not UTF-8 text: {} of its first {} bytes are invalid\nText in another encoding: "
          "convert it with `iconv -f ENCODING -t UTF-8`; to learn bytes as they are: --tokenizer "
          "bytes.",
          path, invalid_bytes_, piece_.bytes);
    }
    if (block.document_ends) {
      piece_.hash = XXH3_128bits_digest(state_.get());
      add_document(piece_);
    }
  }

  void add_document(const DocumentFacts& document) {
    plan_.documents++;
    plan_.bytes += document.bytes;
    const bool duplicate = !document.blank && !seen_.insert(document.hash);
    plan_.empty += document.blank;
    plan_.duplicate += duplicate;
    const bool drop = document.blank || duplicate;
    plan_.kept_bytes += drop ? 0 : document.bytes;
    plan_.short_documents += !drop && document.bytes < kShortDocumentBytes;
    plan_.dropped.push_back(drop);
    plan_.validation.push_back(!drop && chosen(document.hash));
    if (!drop && plan_.kept() <= kManyDocuments) {
      kept_.push_back({plan_.documents - 1, document.bytes});
    }
  }

  // With the probability of validation_fraction; the same for the same content and seed.
  bool chosen(XXH128_hash_t hash) const {
    const uint64_t draw = XXH3_64bits_withSeed(&hash, sizeof(hash), config_.seed);
    return std::ldexp(static_cast<double>(draw), -64) < config_.validation_fraction;
  }

  // Called when fewer than kManyDocuments are kept.
  void cut_stream(double fraction) {
    auto place =
        static_cast<int64_t>(std::floor(static_cast<double>(plan_.kept_bytes) * (1 - fraction)));
    for (const InputCut& document : kept_) {
      if (place < document.offset) {
        plan_.cut = InputCut{document.document, place};
        break;
      }
      place -= document.offset;
    }
    const int64_t first = plan_.cut ? plan_.cut->document : plan_.documents;
    for (int64_t i = 0; i < plan_.documents; i++) {
      plan_.validation[static_cast<size_t>(i)] = i > first;
    }
  }

  const PrepareConfig& config_;
  InputPlan plan_;
  HashSet seen_;
  std::vector<InputCut> kept_;  // the first kept documents, each with its end
  std::unique_ptr<XXH3_state_t, FreeState> state_;
  DocumentFacts piece_{};      // of the text under way
  int64_t invalid_bytes_ = 0;  // of the text under way
};

}  // namespace

InputPlan scan_input(std::span<const InputFile> files, const PrepareConfig& config, int threads,
                     const PrepareProgress& progress) {
  int64_t total = 0;
  for (const InputFile& file : files) total += file.size_bytes;
  TextReader reader(files);
  Scanner scanner(config);
  OrderedPipeline<TextBlock, BlockFacts> pipeline;
  pipeline.produce = [&] { return reader.next(); };
  pipeline.weight = [](const TextBlock& block) { return static_cast<int64_t>(block.text.size()); };
  pipeline.transform = [&](TextBlock block) { return examine(std::move(block), config); };
  pipeline.consume = [&](BlockFacts facts) {
    const int64_t done = facts.block.consumed_bytes;
    scanner.add(std::move(facts));
    if (progress) progress("scanning", done, total);
  };
  pipeline.run(threads, pipeline_bytes(threads));
  return scanner.finish();
}

}  // namespace lockstep

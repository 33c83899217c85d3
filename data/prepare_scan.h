#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "data/prepare.h"
#include "data/text_source.h"

namespace lockstep {

// What the first pass over the input finds: which documents are dropped, and which belong to which
// split. Costs two bits a document.
//
// Many documents (20 or more expected in validation, or 100000): each is in validation when a hash
// of its content and the seed says so, so that more input does not move it. Few (a book, say):
// validation is the last validation_fraction of the kept bytes, cut at the next line.
struct InputPlan {
  int64_t documents = 0, bytes = 0;  // of the input, dropped ones included
  int64_t kept_bytes = 0;
  int64_t empty = 0, duplicate = 0, short_documents = 0;
  bool by_document = false;
  std::optional<InputCut> cut;   // unless by_document or without validation
  std::vector<bool> dropped;     // by document
  std::vector<bool> validation;  // by document; a document with a cut inside is in both splits

  int64_t kept() const { return documents - empty - duplicate; }
};

// Throws DataError as prepare does, and when the input holds no text at all. A duplicate is a
// document whose XXH3 (128 bits) was seen before; this keeps about 25 bytes a document in memory
// while it runs.
InputPlan scan_input(std::span<const InputFile> files, const PrepareConfig& config, int threads,
                     const PrepareProgress& progress);

}  // namespace lockstep

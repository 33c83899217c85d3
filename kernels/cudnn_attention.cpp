#include "kernels/cudnn_attention.h"

#include <cudnn_frontend.h>

#include <cmath>
#include <map>
#include <mutex>
#include <unordered_map>

#include "core/cuda_runtime.h"
#include "core/profile.h"
#include "kernels/cuda/attention_pieces.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // where the headers look for cuDNN's functions
}

namespace lockstep::kernels::cuda {
namespace {

namespace fe = cudnn_frontend;
using Graph = fe::graph::Graph;
using Operand = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int kAlignment = 16;        // bytes, of all rows
constexpr int64_t kMaxHeadDim = 128;  // on every architecture
// Until then, tails of fewer than 128 tokens need lengths that the host copies to the device.
constexpr size_t kOldestVersion = 91600;

std::string version_text(size_t version) {
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

struct Library {
  std::string obstacle;  // why it is not to be used
  std::string name;      // "cuDNN 9.19.0"
};

Library load_library() {
  const std::string file = fmt::format("libcudnn.so.{}", CUDNN_MAJOR);
  // Never closed: the driver may be gone by the time that static objects are.
  fe::cudnn_dlhandle = dlopen(file.c_str(), RTLD_NOW);
  if (fe::cudnn_dlhandle == nullptr) return {fmt::format("no cuDNN: {}", dlerror()), ""};
  if (dlsym(fe::cudnn_dlhandle, "cudnnGetVersion") == nullptr) {
    return {fmt::format("{} is not cuDNN", file), ""};
  }
  const size_t version = fe::detail::get_backend_version();
  if (version < kOldestVersion) {
    return {fmt::format("{} is too old: {} or newer is needed", version_text(version),
                        version_text(kOldestVersion)),
            ""};
  }
  // The headers also load a CUDA runtime by name; not another one than this program's.
  setenv("CUDNN_FRONTEND_CUDART_LIB_NAME",
         fmt::format("libcudart.so.{}", CUDART_VERSION / 1000).c_str(), 0);
  return {"", version_text(version)};
}

const Library& library() {
  static const Library loaded = load_library();
  return loaded;
}

void check(fe::error_t status, std::string_view operation) {
  if (status.is_good()) return;
  throw DeviceError("{} failed in {}: {}", library().name, operation, status.get_message());
}

// The handle of the process, which computes on one GPU.
cudnnHandle_t handle() {
  static const cudnnHandle_t started = [] {
    cudnnHandle_t made = nullptr;
    const cudnnStatus_t status = fe::detail::create_handle(&made);
    if (status != CUDNN_STATUS_SUCCESS) {
      throw DeviceError("{} does not start: {}", library().name,
                        fe::detail::get_error_string(status));
    }
    return made;
  }();
  return started;
}

int architecture() {
  int device = 0;
  lockstep::cuda::check(cudaGetDevice(&device), "asking for the device");
  return this_gpu(device).architecture;
}

// One call of cuDNN: a pass over some heads of some sequences, at strides of the whole tensors.
struct Problem {
  AttentionPass pass;
  DType dtype;
  int64_t sequences, tokens;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t packed_width, output_width;  // elements of a token of qkv, and of y
  friend auto operator<=>(const Problem&, const Problem&) = default;
};

Problem problem_of(AttentionPass pass, const AttentionShape& shape, int64_t sequences,
                   int64_t num_kv_heads) {
  const Heads& heads = shape.heads;
  return {.pass = pass,
          .dtype = shape.dtype,
          .sequences = sequences,
          .tokens = shape.tokens,
          .num_heads = heads.num_heads / heads.num_kv_heads * num_kv_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = heads.head_dim,
          .packed_width = heads.packed(),
          .output_width = heads.num_heads * heads.head_dim};
}

// By these numbers a graph's operands get their memory. The last three are of dqkv.
enum OperandId : int64_t { kQ = 1, kK, kV, kY, kLse, kDy, kDq, kDk, kDv };

std::vector<int64_t> head_rows(const Problem& p, int64_t heads) {
  return {p.sequences, heads, p.tokens, p.head_dim};
}
std::vector<int64_t> head_strides(const Problem& p, int64_t token) {
  return {p.tokens * token, p.head_dim, token, 1};
}

// (B, heads, T, D), tokens `token` elements apart.
fe::graph::Tensor_attributes rows_attributes(OperandId id, const char* name, const Problem& p,
                                             int64_t heads, int64_t token) {
  return fe::graph::Tensor_attributes()
      .set_uid(id)
      .set_name(name)
      .set_dim(head_rows(p, heads))
      .set_stride(head_strides(p, token));
}

fe::graph::Tensor_attributes lse_attributes(const Problem& p) {
  return fe::graph::Tensor_attributes()
      .set_uid(kLse)
      .set_name("lse")
      .set_dim({p.sequences, p.num_heads, p.tokens, 1})
      .set_stride({p.num_heads * p.tokens, p.tokens, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

// Makes an operand that the graph computes one that it stores.
void store(const Operand& operand, OperandId id, const Problem& p, int64_t heads, int64_t token) {
  operand->set_output(true)
      .set_uid(id)
      .set_dim(head_rows(p, heads))
      .set_stride(head_strides(p, token));
}

void add_forward(Graph& graph, const Problem& p, const Operand& q, const Operand& k,
                 const Operand& v) {
  auto attributes = fe::graph::SDPA_attributes()
                        .set_name("attention")
                        .set_implementation(fe::AttentionImplementation_t::COMPOSITE)
                        .set_generate_stats(true)
                        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                        .set_diagonal_band_right_bound(0)
                        .set_attn_scale(1 / std::sqrt(static_cast<float>(p.head_dim)));
  const auto [y, lse] = graph.sdpa(q, k, v, attributes);
  store(y, kY, p, p.num_heads, p.output_width);
  *lse = lse_attributes(p);
  lse->set_output(true);
}

void add_backward(Graph& graph, const Problem& p, const Operand& q, const Operand& k,
                  const Operand& v) {
  const Operand y = graph.tensor(rows_attributes(kY, "y", p, p.num_heads, p.output_width));
  const Operand dy = graph.tensor(rows_attributes(kDy, "dy", p, p.num_heads, p.output_width));
  const Operand lse = graph.tensor(lse_attributes(p));
  auto attributes = fe::graph::SDPA_backward_attributes()
                        .set_name("attention_backward")
                        .set_deterministic_algorithm(true)
                        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                        .set_diagonal_band_right_bound(0)
                        .set_attn_scale(1 / std::sqrt(static_cast<float>(p.head_dim)));
  const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, y, dy, lse, attributes);
  store(dq, kDq, p, p.num_heads, p.packed_width);
  store(dk, kDk, p, p.num_kv_heads, p.packed_width);
  store(dv, kDv, p, p.num_kv_heads, p.packed_width);
}

// The graph of a problem, with the engine configurations that the heuristics name, for this
// machine's GPU or for one described.
std::unique_ptr<Graph> make_graph(const Problem& p, int sm_version,
                                  std::shared_ptr<const fe::DeviceProperties> described = nullptr) {
  auto graph = std::make_unique<Graph>();
  graph->set_io_data_type(p.dtype == DType::bf16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT)
      .set_sm_version(sm_version)
      // Plans are never released, so that a CUDA graph that has captured one need not keep it.
      .set_cuda_graph_retention(fe::CudaGraphRetention_t::NONE);
  if (described) graph->set_device_properties(described);
  const Operand q = graph->tensor(rows_attributes(kQ, "q", p, p.num_heads, p.packed_width));
  const Operand k = graph->tensor(rows_attributes(kK, "k", p, p.num_kv_heads, p.packed_width));
  const Operand v = graph->tensor(rows_attributes(kV, "v", p, p.num_kv_heads, p.packed_width));
  (p.pass == AttentionPass::forward ? add_forward : add_backward)(*graph, p, q, k, v);

  check(graph->validate(), "validating attention");
  check(described ? graph->build_operation_graph() : graph->build_operation_graph(handle()),
        "building attention");
  check(graph->create_execution_plans({fe::HeurMode_t::A}), "choosing an engine for attention");
  graph->deselect_numeric_notes({fe::NumericalNote_t::NONDETERMINISTIC});
  return graph;
}

// A problem made ready, or why there is none.
struct Plan {
  std::unique_ptr<Graph> graph;
  int64_t workspace_bytes = 0;
  std::string obstacle;
};

Plan make_plan(const Problem& p) {
  try {
    Plan plan{make_graph(p, architecture()), 0, ""};
    check(plan.graph->build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE), "planning attention");
    check(plan.graph->get_workspace_size(plan.workspace_bytes), "planning attention");
    return plan;
  } catch (const std::exception& error) {  // ours, or cudnn_frontend's
    return {nullptr, 0, error.what()};
  }
}

// Plans, and the handle, are used by one caller at a time.
std::mutex& mutex() {
  static std::mutex one;
  return one;
}

// The first that the heuristics name, asked once a process: bits do not change between calls.
const Plan& plan_of(const Problem& p) {
  static auto& plans = *new std::map<Problem, Plan>;  // never destroyed, see load_library
  auto known = plans.find(p);
  if (known == plans.end()) known = plans.emplace(p, make_plan(p)).first;
  return known->second;
}

// Why cuDNN has nothing to do with a shape, so far as can be said without it.
std::string shape_obstacle(const AttentionShape& shape) {
  const Heads& heads = shape.heads;
  if (shape.dtype != DType::bf16 && shape.dtype != DType::fp16) {
    return fmt::format("cuDNN's attention is for bf16 and fp16, not {}", name(shape.dtype));
  }
  if (heads.head_dim % 8 != 0 || heads.head_dim > kMaxHeadDim) {
    return fmt::format("cuDNN's attention is for heads of a multiple of 8 up to {}, not {}",
                       kMaxHeadDim, heads.head_dim);
  }
  if (shape.sequences < 1 || shape.tokens < 2) return "cuDNN's attention is for 2 tokens or more";
  const int64_t group = heads.num_heads / heads.num_kv_heads * score_bytes_of_head(shape.tokens);
  if (group > kMaxGroupScoreBytes) {
    return fmt::format("cuDNN's deterministic backward would need {} MiB of scratch for {} tokens",
                       group >> 20, shape.tokens);
  }
  return "";
}

std::string obstacle(const AttentionShape& shape) {
  const std::string of_shape = shape_obstacle(shape);
  return of_shape.empty() ? library().obstacle : of_shape;
}

struct PlannedPiece {
  AttentionPiece piece;
  const Plan* plan;
};

// A pass, cut where it needs much scratch, with a plan for each piece.
std::vector<PlannedPiece> planned_pieces(AttentionPass pass, const AttentionShape& shape) {
  std::vector<AttentionPiece> pieces{{0, shape.sequences, 0, shape.heads.num_kv_heads}};
  if (pass == AttentionPass::backward) {
    pieces = attention_pieces(shape.sequences, shape.tokens, shape.heads);
  }
  std::vector<PlannedPiece> planned;
  for (const AttentionPiece& piece : pieces) {
    const Problem problem = problem_of(pass, shape, piece.sequences, piece.num_kv_heads);
    planned.push_back({piece, &plan_of(problem)});
  }
  return planned;
}

std::string obstacle_of(const std::vector<PlannedPiece>& pieces) {
  for (const PlannedPiece& planned : pieces) {
    if (!planned.plan->obstacle.empty()) return planned.plan->obstacle;
  }
  return "";
}

// Memory of a piece's operands, from those of the whole. Null where there is no tensor.
class PieceMemory {
 public:
  PieceMemory(const AttentionShape& shape, const AttentionPiece& piece)
      : shape_(shape),
        heads_(shape.heads),
        piece_(piece),
        head_(piece.kv_head * heads_.num_heads / heads_.num_kv_heads) {}

  // Queries, keys and values of qkv or of dqkv, by these ids.
  void add_packed(const Tensor& packed, OperandId q, OperandId k, OperandId v) {
    const int64_t width = heads_.packed(), key_head = heads_.num_heads + piece_.kv_head;
    add(q, packed, width, head_);
    add(k, packed, width, key_head);
    add(v, packed, width, key_head + heads_.num_kv_heads);
  }
  void add_output(const Tensor& y, OperandId id) {
    add(id, y, heads_.num_heads * heads_.head_dim, head_);
  }
  void add_lse(const Tensor& lse) {
    const int64_t row = piece_.sequence * heads_.num_heads + head_;
    memory_[kLse] = lse.as<float>() + row * shape_.tokens;
  }
  std::unordered_map<int64_t, void*>& all() { return memory_; }

 private:
  void add(OperandId id, const Tensor& x, int64_t width, int64_t head) {
    const int64_t element = piece_.sequence * shape_.tokens * width + head * heads_.head_dim;
    memory_[id] = static_cast<char*>(x.data()) + element * size_bytes(x.dtype());
  }

  const AttentionShape& shape_;
  const Heads& heads_;
  const AttentionPiece& piece_;
  int64_t head_;  // the first query head
  std::unordered_map<int64_t, void*> memory_;
};

void enqueue(const Plan& plan, PieceMemory& memory, Stream& stream) {
  const cudnnStatus_t status =
      fe::detail::set_stream(handle(), static_cast<cudaStream_t>(stream.native()));
  if (status != CUDNN_STATUS_SUCCESS) {
    throw DeviceError("{} refuses the stream: {}", library().name,
                      fe::detail::get_error_string(status));
  }
  void* workspace = plan.workspace_bytes == 0 ? nullptr : stream.workspace(plan.workspace_bytes);
  check(plan.graph->execute(handle(), memory.all(), workspace), "attention");
}

bool applies(const AttentionShape& shape, const DropoutMask& mask,
             std::initializer_list<const Tensor*> tensors) {
  // A rehearsal asks what a machine with cuDNN would do.
  const bool rehearsed = Rehearsal::current() != nullptr;
  if (mask.active() || !(rehearsed ? shape_obstacle(shape) : obstacle(shape)).empty()) return false;
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor* tensor) {
    return reinterpret_cast<uintptr_t>(tensor->data()) % kAlignment == 0;
  });
}

AttentionShape shape_of(const Tensor& qkv, const Heads& heads) {
  return {qkv.dtype(), qkv.dim(0), qkv.dim(1), heads};
}

// What a pass must do. Causal: half of T * T scores. Forward makes two products of them, backward
// five, and it writes and reads the gradients of all scores (attention_pieces.h).
Work work_of(AttentionPass pass, const AttentionShape& s) {
  const auto rows = static_cast<double>(s.sequences * s.tokens);
  const auto heads = static_cast<double>(s.heads.num_heads);
  const double products = rows * heads * static_cast<double>(s.tokens * s.heads.head_dim);
  const auto element = static_cast<double>(size_bytes(s.dtype));
  const double packed = rows * static_cast<double>(s.heads.packed()) * element;
  const double output = rows * heads * static_cast<double>(s.heads.head_dim) * element;
  const double lse = rows * heads * 4;
  if (pass == AttentionPass::forward) {
    return {"cudnn_attention_forward", packed + output + lse, 2 * products, Unit::tensor};
  }
  const double scores = static_cast<double>(s.sequences * s.heads.num_heads) *
                        static_cast<double>(score_bytes_of_head(s.tokens));
  return {"cudnn_attention_backward", 2 * (packed + output + scores) + lse, 5 * products,
          Unit::tensor};
}

}  // namespace

int64_t cudnn_attention_workspace_bytes(const AttentionShape& shape) {
  if (!shape_obstacle(shape).empty()) return 0;
  const AttentionPiece piece = attention_pieces(shape.sequences, shape.tokens, shape.heads).front();
  const int64_t group = shape.heads.num_heads / shape.heads.num_kv_heads;
  return piece.sequences * piece.num_kv_heads * group * score_bytes_of_head(shape.tokens);
}

bool cudnn_attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv,
                             const Heads& heads, const DropoutMask& mask, Stream& stream) {
  const AttentionShape shape = shape_of(qkv, heads);
  if (!applies(shape, mask, {&y, &qkv})) return false;
  const Work work = work_of(AttentionPass::forward, shape);
  if (stream.note(work)) return true;
  const std::lock_guard lock(mutex());
  const std::vector<PlannedPiece> pieces = planned_pieces(AttentionPass::forward, shape);
  if (!obstacle_of(pieces).empty()) return false;
  const ProfileScope scope(work, stream);
  for (const auto& [piece, plan] : pieces) {
    PieceMemory memory(shape, piece);
    memory.add_packed(qkv, kQ, kK, kV);
    memory.add_output(y, kY);
    memory.add_lse(lse);
    enqueue(*plan, memory, stream);
  }
  return true;
}

bool cudnn_attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y,
                              const Tensor& lse, const Tensor& qkv, const Heads& heads,
                              const DropoutMask& mask, Stream& stream) {
  const AttentionShape shape = shape_of(qkv, heads);
  if (!applies(shape, mask, {&dqkv, &dy, &y, &qkv})) return false;
  const Work work = work_of(AttentionPass::backward, shape);
  if (stream.note(work)) return true;
  const std::lock_guard lock(mutex());
  const std::vector<PlannedPiece> pieces = planned_pieces(AttentionPass::backward, shape);
  if (!obstacle_of(pieces).empty()) return false;
  const ProfileScope scope(work, stream);
  for (const auto& [piece, plan] : pieces) {
    PieceMemory memory(shape, piece);
    memory.add_packed(qkv, kQ, kK, kV);
    memory.add_output(y, kY);
    memory.add_output(dy, kDy);
    memory.add_lse(lse);
    memory.add_packed(dqkv, kDq, kDk, kDv);
    enqueue(*plan, memory, stream);
  }
  return true;
}

std::string cudnn_attention_obstacle(const AttentionShape& shape) {
  if (const std::string reason = obstacle(shape); !reason.empty()) return reason;
  const std::lock_guard lock(mutex());
  const std::string forward = obstacle_of(planned_pieces(AttentionPass::forward, shape));
  return forward.empty() ? obstacle_of(planned_pieces(AttentionPass::backward, shape)) : forward;
}

std::string cudnn_obstacle(std::string* name) {
  if (name != nullptr) *name = library().name;
  return library().obstacle;
}

int64_t cudnn_attention_configurations(const AttentionShape& shape, AttentionPass pass,
                                       std::string_view device, int architecture) {
  if (const std::string reason = obstacle(shape); !reason.empty()) {
    throw DeviceError("{}", reason);
  }
  auto properties = std::make_shared<fe::DeviceProperties>();
  check(properties->deserialize({device.begin(), device.end()}), "reading a device's description");
  const Problem problem = problem_of(pass, shape, shape.sequences, shape.heads.num_kv_heads);
  const auto graph = make_graph(problem, architecture, properties);
  return graph->get_execution_plan_count();
}

}  // namespace lockstep::kernels::cuda

#include "core/tensor.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "core/cuda_runtime.h"
#include "core/profile.h"

namespace lockstep {

Shape::Shape(std::initializer_list<int64_t> dims) {
  CHECK(dims.size() <= kMaxRank);
  for (int64_t d : dims) {
    CHECK(d >= 0);
    dims_[rank_++] = d;
  }
}

int64_t Shape::size() const {
  int64_t size = 1;
  for (int i = 0; i < rank_; i++) size *= dims_[i];
  return size;
}

std::string Shape::to_string() const {
  std::string text = "(";
  for (int i = 0; i < rank_; i++) text += fmt::format("{}{}", i == 0 ? "" : ", ", dims_[i]);
  return text + ")";
}

Tensor Tensor::reshape(Shape shape) const {
  CHECK(shape.size() == size(), "{} to {}", shape_.to_string(), shape.to_string());
  return {data_, dtype_, shape, device_};
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  CHECK(shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0], "[{}, {}) of {}",
        begin, end, shape_.to_string());
  Shape shape = shape_;
  shape[0] = end - begin;
  const int64_t row_bytes = shape_[0] == 0 ? 0 : size_bytes() / shape_[0];
  return {static_cast<char*>(data_) + begin * row_bytes, dtype_, shape, device_};
}

void copy(const Tensor& out, const Tensor& x, Stream& stream) {
  CHECK(out.size() == x.size() && out.dtype() == x.dtype());
  if (out.device() == Device::cpu && x.device() == Device::cpu) {
    const ProfileScope scope({"copy", static_cast<double>(2 * x.size_bytes())});
    std::memcpy(out.data(), x.data(), static_cast<size_t>(x.size_bytes()));
    return;
  }
  CHECK(stream.device() == Device::cuda);
  // Within a device both sides are its memory.
  const bool within = out.device() == x.device();
  const Work work{"copy", static_cast<double>((within ? 2 : 1) * x.size_bytes())};
  if (stream.note(work)) return;
  const ProfileScope scope(work, stream);
  if constexpr (kCudaIsBuilt) cuda::copy(out.data(), x.data(), x.size_bytes(), stream);
}

namespace {

PeerMemory peer_memory{};

// Anonymous pages: zeroed by the kernel on first touch, by the thread that touches them.
// In a rehearsal more of them than there is memory.
void* allocate_pages(int64_t size_bytes) {
  const int more = Rehearsal::current() == nullptr ? 0 : MAP_NORESERVE;
  void* data =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | more, -1, 0);
  if (data == MAP_FAILED) {
    throw DeviceError("out of memory: {:.1f} MiB were refused by the system",
                      size_bytes / 1048576.0);
  }
  madvise(data, size_bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  return data;
}

}  // namespace

Buffer::Buffer(int64_t size_bytes, Device device)
    : Buffer(size_bytes, device, device == Device::cpu ? Source::pages : Source::device) {}

Buffer::Buffer(int64_t size_bytes, Device device, Source source)
    : size_bytes_(size_bytes), device_(device), source_(source) {
  CHECK(size_bytes >= 0);
  if (size_bytes == 0) return;
  const bool rehearsed = Rehearsal::current() != nullptr;
  if (rehearsed) source_ = Source::pages;
  if (device == Device::cpu && source_ == Source::pages) {
    data_ = allocate_pages(size_bytes);
  } else if (rehearsed) {
    data_ = reserve_addresses(size_bytes);
  } else if constexpr (kCudaIsBuilt) {
    if (source_ == Source::pinned) {
      data_ = cuda::allocate_pinned(size_bytes);
    } else if (source_ == Source::peers) {
      data_ = peer_memory.allocate(size_bytes);
      cuda::clear(data_, size_bytes);
    } else {
      data_ = cuda::allocate(size_bytes);
    }
  } else {
    throw DeviceError("this program was built without CUDA");
  }
}

Buffer::Buffer(DType dtype, Shape shape, Device device)
    : Buffer(shape.size() * lockstep::size_bytes(dtype), device) {
  view_ = Tensor(data_, dtype, shape, device);
}

Buffer Buffer::pinned(DType dtype, Shape shape, Device device) {
  const Source source = device == Device::cpu ? Source::pages : Source::pinned;
  Buffer buffer(shape.size() * lockstep::size_bytes(dtype), Device::cpu, source);
  buffer.view_ = Tensor(buffer.data_, dtype, shape);
  return buffer;
}

Buffer Buffer::for_peers(DType dtype, Shape shape, Device device) {
  if (device == Device::cpu || peer_memory.allocate == nullptr) return Buffer(dtype, shape, device);
  Buffer buffer(shape.size() * lockstep::size_bytes(dtype), device, Source::peers);
  buffer.view_ = Tensor(buffer.data_, dtype, shape, device);
  return buffer;
}

void set_peer_memory(const PeerMemory& memory) { peer_memory = memory; }

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(device_, other.device_);
  std::swap(source_, other.source_);
  std::swap(view_, other.view_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (source_ == Source::pages) {
    munmap(data_, size_bytes_);
  } else if (source_ == Source::peers) {
    peer_memory.release(data_);
  } else if constexpr (kCudaIsBuilt) {
    source_ == Source::pinned ? cuda::release_pinned(data_) : cuda::release(data_);
  }
}

Tensor Buffer::tensor(DType dtype, Shape shape, int64_t offset_bytes) const {
  CHECK(
      offset_bytes >= 0 && offset_bytes + shape.size() * lockstep::size_bytes(dtype) <= size_bytes_,
      "{} at {} exceeds {} bytes", shape.to_string(), offset_bytes, size_bytes_);
  return {static_cast<char*>(data_) + offset_bytes, dtype, shape, device_};
}

}  // namespace lockstep

#include <dlfcn.h>
#include <nccl.h>

#include <string>

// NCCL's functions that nccl_communicator.cpp calls, forwarded to the library, which is loaded when
// the first of them is: a program that computes on CPUs, or on one GPU, does without. Where it is
// not found, or lacks a function, that one fails with ncclSystemError, and ncclGetLastError says
// why. The emulated device (tests/) has functions of these names of its own.
namespace {

struct Library {
  void* handle;
  std::string obstacle;
};

Library load() {
  const std::string file = "libnccl.so." + std::to_string(NCCL_MAJOR);
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  return {handle, handle == nullptr ? dlerror() : ""};
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

template <class F>
F* find(F*, const char* name) {
  void* handle = library().handle;
  return handle == nullptr ? nullptr : reinterpret_cast<F*>(dlsym(handle, name));
}

// The function of this type and name in the library.
template <class F, class... A>
ncclResult_t forward(F* own, const char* name, A... arguments) {
  F* found = find(own, name);
  return found == nullptr ? ncclSystemError : found(arguments...);
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  return forward(ncclGetVersion, "ncclGetVersion", version);
}
const char* ncclGetErrorString(ncclResult_t code) {
  auto* found = find(ncclGetErrorString, "ncclGetErrorString");
  return found == nullptr ? ncclGetLastError(nullptr) : found(code);
}
const char* ncclGetLastError(ncclComm_t communicator) {
  if (library().handle == nullptr) return library().obstacle.c_str();
  auto* found = find(ncclGetLastError, "ncclGetLastError");
  return found == nullptr ? "the library lacks a function" : found(communicator);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return forward(ncclGetUniqueId, "ncclGetUniqueId", id);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  return forward(ncclCommInitRankConfig, "ncclCommInitRankConfig", communicator, size, id, rank,
                 config);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* code) {
  return forward(ncclCommGetAsyncError, "ncclCommGetAsyncError", communicator, code);
}
ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  return forward(ncclCommFinalize, "ncclCommFinalize", communicator);
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  return forward(ncclCommDestroy, "ncclCommDestroy", communicator);
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  return forward(ncclCommAbort, "ncclCommAbort", communicator);
}

ncclResult_t ncclMemAlloc(void** memory, size_t size) {
  return forward(ncclMemAlloc, "ncclMemAlloc", memory, size);
}
ncclResult_t ncclMemFree(void* memory) { return forward(ncclMemFree, "ncclMemFree", memory); }
ncclResult_t ncclCommRegister(const ncclComm_t communicator, void* memory, size_t size,
                              void** handle) {
  return forward(ncclCommRegister, "ncclCommRegister", communicator, memory, size, handle);
}
ncclResult_t ncclCommDeregister(const ncclComm_t communicator, void* handle) {
  return forward(ncclCommDeregister, "ncclCommDeregister", communicator, handle);
}

ncclResult_t ncclGroupStart() { return forward(ncclGroupStart, "ncclGroupStart"); }
ncclResult_t ncclGroupEnd() { return forward(ncclGroupEnd, "ncclGroupEnd"); }
ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclAllReduce, "ncclAllReduce", in, out, count, type, op, communicator, stream);
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclAllGather, "ncclAllGather", in, out, count, type, communicator, stream);
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclReduceScatter, "ncclReduceScatter", in, out, count, type, op, communicator,
                 stream);
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclBroadcast, "ncclBroadcast", in, out, count, type, root, communicator, stream);
}
ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclSend, "ncclSend", in, count, type, peer, communicator, stream);
}
ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return forward(ncclRecv, "ncclRecv", out, count, type, peer, communicator, stream);
}

}  // extern "C"

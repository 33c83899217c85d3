#pragma once
#include <cstdint>
#include <functional>

// One pool of threads a process. Work is cut into blocks that depend on the problem alone, never on
// the number of threads, so that results do not either.
namespace lockstep {

// Sets the number of threads that parallel_for uses, the calling thread included; at least 1.
// Not to be called while a parallel_for runs. The pool starts with one thread.
void set_num_threads(int count);
int num_threads();

// The calling thread's place in the running parallel_for, in [0, num_threads()); 0 outside of one.
int thread_index();

// Calls body(begin, end) for each block [k * grain, min(n, (k + 1) * grain)) of [0, n), each once,
// on any thread, and returns when all are done. The first exception thrown is rethrown. Nested
// calls run on the calling thread. Threads outside the pool may call it at the same time: they take
// turns.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace lockstep

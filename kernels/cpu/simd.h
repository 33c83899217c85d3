#pragma once

// One binary for every x86-64 machine: a function marked LOCKSTEP_CLONES is compiled for AVX-512,
// AVX2 and the baseline, and the best is picked when the program starts. What such a function calls
// in its loops must be LOCKSTEP_INLINE, or it is called, compiled for the baseline, and the loop
// does not vectorise.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LOCKSTEP_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LOCKSTEP_CLONES
#endif
#define LOCKSTEP_INLINE inline __attribute__((always_inline))

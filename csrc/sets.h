// Which instruction set the CPU kernels are compiled for and run with.
//
// A file of kernels includes each_set.h, by which it is compiled once for every set, in a namespace
// of its own, with vectors of just one register: the compiler keeps wider ones in memory, where a
// sum waits for the store of every addition. HK_BEST(call) calls that of the best set at hand.
// What the kernels call must be HK_INLINE, so that it is compiled for the same set. The last bits
// of a sum differ between the sets.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HK_HAS_SETS
#define HK_BEST(call) \
  (best_set() == Set::avx512 ? avx512::call : best_set() == Set::avx2 ? avx2::call : baseline::call)
#else
#define HK_BEST(call) baseline::call
#endif

#define HK_INLINE inline __attribute__((always_inline))
#define HK_INLINE_LAMBDA __attribute__((always_inline))

namespace histokit {

enum class Set { baseline, avx2, avx512 };

// The best set of this processor, or a lesser one that HISTOKIT_INSTRUCTIONS names; found once.
Set best_set();

// Its name, for people.
const char* set_name();

}  // namespace histokit

#include "sets.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace histokit {
namespace {

Set find_set() {
  Set set = Set::baseline;
#ifdef HK_HAS_SETS
  if (__builtin_cpu_supports("x86-64-v3")) set = Set::avx2;
  if (__builtin_cpu_supports("x86-64-v4")) set = Set::avx512;
#endif
  const char* wanted = std::getenv("HISTOKIT_INSTRUCTIONS");
  if (wanted == nullptr || *wanted == 0 || std::strcmp(wanted, "avx512") == 0) return set;
  if (std::strcmp(wanted, "baseline") == 0) return Set::baseline;
  if (std::strcmp(wanted, "avx2") == 0) return std::min(set, Set::avx2);
  std::fprintf(stderr,
               "histokit: HISTOKIT_INSTRUCTIONS is %s, which is not baseline, avx2 or avx512; the "
               "best set of this processor is taken\n",
               wanted);
  return set;
}

}  // namespace

Set best_set() {
  static const Set set = find_set();
  return set;
}

const char* set_name() {
  switch (best_set()) {
    case Set::avx512:
      return "x86-64-v4 (AVX-512)";
    case Set::avx2:
      return "x86-64-v3 (AVX2)";
    default:
      return "baseline";
  }
}

}  // namespace histokit

// What the passes of prototype_attention share: patches, or prototypes in the backward pass to
// them, sit in registers and the other side passes by (heads.cuh).
#pragma once
#include "../prototype_attention.h"
#include "heads.cuh"

namespace histokit {
namespace {

constexpr const char* kTooDeep =
    "prototype_attention on CUDA takes heads of up to 1024 elements (512 in float64)";

template <class T>
bool wide_rows(const PrototypeAttentionParams& p) {
  constexpr int kPack = 16 / sizeof(T);
  return (p.head_dim | p.query_stride | p.grad_out_stride) % kPack == 0 && aligned16(p.query) &&
         aligned16(p.out) && aligned16(p.grad_out) && aligned16(p.grad_query);
}

template <class Launch>
Error dispatch_dim(const PrototypeAttentionParams& p, Launch launch) {
  return dispatch_head(p.dtype, p.head_dim, kTooDeep, launch);
}

}  // namespace
}  // namespace histokit

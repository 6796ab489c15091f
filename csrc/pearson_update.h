// Merge a chunk of (prediction, target) rows into running moments per slide and gene.
//
// state (6, S, G) float64: n, mean of prediction, mean of target, sums of squared deviations of
// prediction and of target, sum of products of deviations. An entry counts when neither value is
// NaN and the mask allows it. Within a chunk the values are shifted by a pivot (the state's mean,
// or the chunk's first counted entry), summed in float64, and merged with Chan's pairwise update.
// The squared error needs no row of its own: m2_p + m2_t - 2 c + n (mean_p - mean_t)^2.
#pragma once
#include "dtype.h"

namespace histokit {

constexpr int64_t kPearsonRows = 6;

struct PearsonUpdateParams {
  Dtype dtype;                  // of pred and target
  int64_t num_rows, num_genes;  // N, G
  int64_t num_slides;           // S
  const void* pred;             // (N, G), row stride pred_stride, columns contiguous
  int64_t pred_stride;
  const void* target;  // (N, G), row stride target_stride
  int64_t target_stride;
  const uint8_t* mask;  // (N, G) with mask_stride, (G,) with mask_stride 0, or null; 0 or 1
  int64_t mask_stride;
  const int64_t* order;    // (N,) rows sorted by slide (stable), or null: rows as they are
  const int64_t* offsets;  // (S + 1,) where each slide's rows begin in order; null when S == 1
  double* state;           // (6, S, G) contiguous, updated in place
  int64_t num_partials;    // P row splits; CUDA only, 1 on CPU
  double* partial;         // (P, 6, S, G) scratch; null when P == 1
};

int64_t pearson_update_partials_cuda(int64_t num_rows, int64_t num_slides, int64_t num_genes);

// Genes [begin, end) on the calling thread.
void pearson_update_cpu(const PearsonUpdateParams& p, int64_t begin, int64_t end);

Error pearson_update_cuda(PearsonUpdateParams p, Stream stream);

}  // namespace histokit

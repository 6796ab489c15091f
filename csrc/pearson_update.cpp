#include "pearson_update.h"

#include "glue.h"

namespace histokit {

constexpr const char* kOp = "pearson_update";

void pearson_update(Tensor state, Tensor pred, Tensor target, OptionalTensor mask,
                    OptionalTensor order, OptionalTensor offsets) {
  HK_CHECK(state.dim() == 3 && state.size(0) == kPearsonRows && state.is_contiguous() &&
               state.scalar_type() == ScalarType::Double,
           kOp, ": state must be (6, S, G), float64 and contiguous");
  HK_CHECK(pred.dim() == 2, kOp, ": pred must be (N, G), got ", pred.dim(), " dimensions");
  PearsonUpdateParams p = {};
  p.num_rows = pred.size(0), p.num_slides = state.size(1), p.num_genes = state.size(2);
  check_shape(kOp, "pred", pred, {p.num_rows, p.num_genes});
  check_shape(kOp, "target", target, {p.num_rows, p.num_genes});
  HK_CHECK(pred.scalar_type() == target.scalar_type(), kOp,
           ": pred and target must have the same type");
  HK_CHECK(same_device(pred, target) && same_device(pred, state), kOp,
           ": state, pred and target must be on one device");
  if (p.num_rows == 0 || p.num_genes == 0) return;
  const Tensor predicted = rows_of(kOp, "pred", pred), measured = rows_of(kOp, "target", target);
  p.dtype = dtype_of(kOp, pred);
  p.pred = predicted.const_data_ptr(), p.pred_stride = predicted.stride(0);
  p.target = measured.const_data_ptr(), p.target_stride = measured.stride(0);
  const bool by_gene = mask && mask->dim() == 1;
  const auto allowed =
      by_gene ? checked(kOp, "mask", mask, ScalarType::Bool, {p.num_genes}, pred)
              : checked(kOp, "mask", mask, ScalarType::Bool, {p.num_rows, p.num_genes}, pred);
  p.mask = data_as<uint8_t>(allowed), p.mask_stride = by_gene ? 0 : p.num_genes;
  const auto rows = checked(kOp, "order", order, ScalarType::Long, {p.num_rows}, pred);
  const auto starts = checked(kOp, "offsets", offsets, ScalarType::Long, {p.num_slides + 1}, pred);
  HK_CHECK(starts || p.num_slides == 1, kOp, ": offsets are needed with ", p.num_slides, " slides");
  check_index(kOp, "order", rows, p.num_rows);
  check_index(kOp, "offsets", starts, p.num_rows + 1);
  p.order = data_as<int64_t>(rows), p.offsets = data_as<int64_t>(starts);
  p.state = static_cast<double*>(state.mutable_data_ptr());
  p.num_partials = by_device(
      pred,
      [&](auto) { return pearson_update_partials_cuda(p.num_rows, p.num_slides, p.num_genes); },
      [] { return int64_t(1); });
  Tensor scratch = new_tensor(
      state, {p.num_partials > 1 ? p.num_partials : 0, kPearsonRows, p.num_slides, p.num_genes},
      ScalarType::Double);
  p.partial = p.num_partials > 1 ? static_cast<double*>(scratch.mutable_data_ptr()) : nullptr;
  launch(
      kOp, pred, p.num_genes, 256, [&](auto stream) { return pearson_update_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { pearson_update_cpu(p, begin, end); });
}

}  // namespace histokit

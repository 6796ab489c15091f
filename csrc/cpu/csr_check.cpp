#include "../csr.h"

namespace histokit {
namespace {

template <typename Index>
RowFault fault(const CsrParams& p, int64_t row) {
  const Index* offsets = static_cast<const Index*>(p.row_offsets);
  const Index* index = static_cast<const Index*>(p.col_index);
  const int64_t begin = offsets[row], end = offsets[row + 1];
  if (begin < 0 || begin > end || end > p.num_entries) return RowFault::offsets;
  if (row == 0 && begin != 0) return RowFault::offsets;
  if (row == p.num_rows - 1 && end != p.num_entries) return RowFault::offsets;
  bool sound = begin == end || (index[begin] >= 0 && index[end - 1] < p.num_cols);
  for (int64_t at = begin + 1; at < end; ++at) sound &= index[at - 1] < index[at];
  if (sound) return RowFault::none;
  RowFault worst = RowFault::none;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t column = index[at], before = at > begin ? int64_t(index[at - 1]) : -1;
    if (column < 0 || column >= p.num_cols) return RowFault::range;
    if (column < before) worst = RowFault::order;
    if (column == before && worst == RowFault::none) worst = RowFault::duplicate;
  }
  return worst;
}

}  // namespace

void csr_check_cpu(const CsrParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    p.faults[row] = p.wide_index ? fault<int64_t>(p, row) : fault<int32_t>(p, row);
}

}  // namespace histokit

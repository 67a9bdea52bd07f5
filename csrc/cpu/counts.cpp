// encode_counts, decode_counts: counters N <-> their stored form. count_active, count_explored: sums per layer.
#include "../arguments.h"
#include "parallel.h"

namespace dstee::cpu {
namespace {

using torch::headeronly::ScalarType;

template <class I>
void encode(const void* from, const uint8_t* mask, int16_t* to, int64_t n, int64_t round) {
  for_ranges(worker_count(n), n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto x = static_cast<uint64_t>(read<I>(from, i));  // any N may come: without a sign nothing overflows
      to[i] = static_cast<int16_t>(mask[i] ? flip_count(x, static_cast<uint64_t>(round)) : x);
    }
  });
}

const uint8_t* mask_of(const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Byte && t.numel() == (n + 7) / 8 && t.is_contiguous(),
                  "dstee: mask_bits has another size than its counts need");
  check_memory(t, "mask_bits");
  return static_cast<const uint8_t*>(t.const_data_ptr());
}
const void* counts_of(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Short && t.is_contiguous(), "dstee: counts are not int16");
  check_memory(t, "counts");
  return t.const_data_ptr();
}

}  // namespace

Tensor encode_counts(const Tensor& N, const Tensor& mask, int64_t round) {
  const int64_t n = N.numel();
  STD_TORCH_CHECK(N.is_cpu() && mask.is_cpu() && mask.numel() == n && mask.scalar_type() == ScalarType::Bool,
                  "dstee: mask does not fit N");
  check_memory(N, "N");
  check_memory(mask, "mask");
  Tensor out = torch::stable::empty({n}, ScalarType::Short);
  auto* to = static_cast<int16_t*>(out.mutable_data_ptr());
  const auto* m = static_cast<const uint8_t*>(mask.const_data_ptr());
  switch (N.scalar_type()) {
    case ScalarType::Byte:
      encode<uint8_t>(N.const_data_ptr(), m, to, n, round);
      break;
    case ScalarType::Char:
      encode<int8_t>(N.const_data_ptr(), m, to, n, round);
      break;
    case ScalarType::Short:
      encode<int16_t>(N.const_data_ptr(), m, to, n, round);
      break;
    case ScalarType::Int:
      encode<int32_t>(N.const_data_ptr(), m, to, n, round);
      break;
    case ScalarType::Long:
      encode<int64_t>(N.const_data_ptr(), m, to, n, round);
      break;
    default:
      STD_TORCH_CHECK(false, "dstee: N is not uint8, int8, int16, int32 or int64");
  }
  return out;
}

Tensor decode_counts(const Tensor& counts, const Tensor& mask_bits, int64_t round, const std::vector<int64_t>& shape) {
  const int64_t n = counts.numel();
  const void* from = counts_of(counts);
  const uint8_t* bits = mask_of(mask_bits, n);
  Tensor out = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), ScalarType::Int);
  STD_TORCH_CHECK(out.numel() == n, "dstee: counts do not fit the shape");
  auto* to = static_cast<int32_t*>(out.mutable_data_ptr());
  const auto q = static_cast<uint32_t>(round);
  for_ranges(worker_count(n), n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto stored = static_cast<uint32_t>(read<int16_t>(from, i));
      to[i] = static_cast<int32_t>(is_active(bits, i) ? flip_count(stored, q) : stored);
    }
  });
  return out;
}

Tensor count_active(const Tensors& mask_bits) {
  const auto L = static_cast<int64_t>(mask_bits.size());
  Tensor out = torch::stable::empty({L}, ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  int64_t total = 0;
  for (const Tensor& t : mask_bits) {
    mask_of(t, 8 * t.numel());
    total += 8 * t.numel();
  }
  for_tickets(worker_count(total), L, [&](int, int64_t i) {
    to[i] = loops().count_bits(static_cast<const uint8_t*>(mask_bits[i].const_data_ptr()), mask_bits[i].numel());
  });
  return out;
}

Tensor count_explored(const Tensors& counts, const Tensors& mask_bits) {
  const auto L = static_cast<int64_t>(mask_bits.size());
  STD_TORCH_CHECK(counts.size() == mask_bits.size(), "dstee: counts and mask_bits differ in length");
  Tensor out = torch::stable::empty({L}, ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  for (int64_t l = 0; l < L; ++l) {
    const int64_t n = counts[l].numel();
    const void* stored = counts_of(counts[l]);
    const uint8_t* bits = mask_of(mask_bits[l], n);
    std::atomic<int64_t> explored{0};
    for_ranges(worker_count(n), n, [&](int64_t first, int64_t last) {
      int64_t here = 0;
      for (int64_t i = first; i < last; ++i) here += read<int16_t>(stored, i) != 0 || is_active(bits, i);
      explored += here;
    });
    to[l] = explored;
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) {
  m.impl("encode_counts", TORCH_BOX(&encode_counts));
  m.impl("decode_counts", TORCH_BOX(&decode_counts));
  m.impl("count_active", TORCH_BOX(&count_active));
  m.impl("count_explored", TORCH_BOX(&count_explored));
}

}  // namespace dstee::cpu

// pack_mask, unpack_mask: bool [n] in storage order <-> one bit a weight, lowest bit first, padding bits 0.
#include "../arguments.h"
#include "parallel.h"

namespace dstee::cpu {
namespace {

Tensor make(int64_t n, torch::headeronly::ScalarType dtype) { return torch::stable::empty({n}, dtype); }

}  // namespace

Tensor pack_mask(const Tensor& mask) {
  STD_TORCH_CHECK(mask.is_cpu() && mask.scalar_type() == torch::headeronly::ScalarType::Bool, "dstee: mask is not bool");
  check_memory(mask, "mask");
  const int64_t n = mask.numel();
  Tensor out = make((n + 7) / 8, torch::headeronly::ScalarType::Byte);
  const auto* from = static_cast<const uint8_t*>(mask.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for_ranges(worker_count(n), n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += 8) {
      unsigned byte = 0;
      for (int64_t j = i; j < std::min(i + 8, last); ++j) byte |= static_cast<unsigned>(from[j] != 0) << (j - i);
      to[i / 8] = static_cast<uint8_t>(byte);
    }
  });
  return out;
}

Tensor unpack_mask(const Tensor& mask_bits, const std::vector<int64_t>& shape) {
  Tensor out = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()),
                                    torch::headeronly::ScalarType::Bool);
  const int64_t n = out.numel();
  STD_TORCH_CHECK(mask_bits.is_cpu() && mask_bits.numel() == (n + 7) / 8 && mask_bits.is_contiguous() &&
                      mask_bits.scalar_type() == torch::headeronly::ScalarType::Byte,
                  "dstee: mask_bits does not fit the shape");
  check_memory(mask_bits, "mask_bits");
  const auto* from = static_cast<const uint8_t*>(mask_bits.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for_ranges(worker_count(n), n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) to[i] = is_active(from, i);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
}

}  // namespace dstee::cpu

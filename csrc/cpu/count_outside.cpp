// count_outside: weights outside the masks that are not 0, in one pass over all layers.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../arguments.h"
#include "parallel.h"
#include "pieces.h"

namespace dstee::cpu {
namespace {

static_assert(kPiece / 8 < 1 << 16);

// Of a weight's bits all but the sign say whether it is 0; NaN is not.
template <class Bits>
bool is_nonzero(const char* weights, int64_t i) {
  Bits bits;
  memcpy(&bits, weights + i * static_cast<int64_t>(sizeof bits), sizeof bits);
  return static_cast<Bits>(bits << 1) != 0;
}

// The eight weights of a byte of mask, a lane each; comparisons give 0 or -1.
typedef uint32_t Lanes32 __attribute__((vector_size(32)));
typedef uint16_t Lanes16 __attribute__((vector_size(16)));

template <class Lanes>
inline __attribute__((always_inline)) int64_t outside_bytes(const char* weights, const uint8_t* mask, int64_t bytes) {
  const Lanes bit = {1, 2, 4, 8, 16, 32, 64, 128};
  Lanes found = {};  // a piece has fewer bytes of mask than 16 bits count
  for (int64_t byte = 0; byte < bytes; ++byte) {
    Lanes w;
    memcpy(&w, weights + byte * static_cast<int64_t>(sizeof w), sizeof w);
    found -= (Lanes)((w << 1) != 0) & (Lanes)((bit & mask[byte]) == 0);
  }
  int64_t sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += found[lane];
  return sum;
}

#if DSTEE_X86
template <class Lanes>
__attribute__((target("avx2"))) int64_t outside_bytes_avx2(const char* weights, const uint8_t* mask, int64_t bytes) {
  return outside_bytes<Lanes>(weights, mask, bytes);
}
#endif

template <class Bits>
int64_t outside_whole_bytes(const char* weights, const uint8_t* mask, int64_t bytes) {
  using Lanes = std::conditional_t<sizeof(Bits) == 4, Lanes32, Lanes16>;
#if DSTEE_X86
  if (&loops() != &kScalarLoops) return outside_bytes_avx2<Lanes>(weights, mask, bytes);
#endif
  return outside_bytes<Lanes>(weights, mask, bytes);
}

template <class Bits>
int64_t outside(const Layer& l, const Piece& piece) {
  const char* weights = static_cast<const char*>(l.w) + piece.begin * static_cast<int64_t>(sizeof(Bits));
  const uint8_t* mask = l.bits + piece.begin / 8;
  const int64_t whole = piece.size / 8;
  int64_t sum = outside_whole_bytes<Bits>(weights, mask, whole);
  for (int64_t i = 8 * whole; i < piece.size; ++i) sum += is_nonzero<Bits>(weights, i) && !is_active(mask, i);
  return sum;
}

}  // namespace

Tensor count_outside(const Tensors& params, const Tensors& mask_bits) {
  const std::vector<Layer> layers = read_masked(DeviceType::CPU, params, mask_bits);
  const std::vector<Piece> pieces = cut_pieces(layers);
  std::vector<int64_t> found(pieces.size());
  for_tickets(worker_count(total_weights(layers)), static_cast<int64_t>(pieces.size()), [&](int, int64_t t) {
    const Layer& l = layers[pieces[t].layer];
    found[t] = l.dtype == kF32 ? outside<uint32_t>(l, pieces[t]) : outside<uint16_t>(l, pieces[t]);
  });
  Tensor out = torch::stable::empty({static_cast<int64_t>(layers.size())}, torch::headeronly::ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  std::fill(to, to + layers.size(), 0);
  for (size_t t = 0; t < pieces.size(); ++t) to[pieces[t].layer] += found[t];
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("count_outside", TORCH_BOX(&count_outside)); }

}  // namespace dstee::cpu

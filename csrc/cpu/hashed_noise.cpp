// hashed_noise_: noise that is a hash of (seed, index in the whole).
#include "../arguments.h"
#include "parallel.h"

namespace dstee::cpu {

void hashed_noise_(const Tensors& out, const std::vector<int64_t>& seeds, const std::vector<int64_t>& where) {
  const std::vector<Layer> layers = read_noise(DeviceType::CPU, out, seeds, where);
  const std::vector<Place> places = places_of(where);
  const std::vector<Piece> pieces = cut_pieces(layers);
  for_tickets(worker_count(total_weights(layers)), static_cast<int64_t>(pieces.size()), [&](int, int64_t t) {
    const Piece& piece = pieces[t];
    const auto i = static_cast<size_t>(piece.layer);
    const Place place = places.empty() ? kWhole : places[i];
    auto* to = static_cast<float*>(at(layers[i].w, piece.begin, kF32));
    loops().noise(to, piece.size, static_cast<uint64_t>(piece.begin), place, &seeds[4 * i]);
  });
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("hashed_noise_", TORCH_BOX(&hashed_noise_)); }

}  // namespace dstee::cpu

// key_histogram: the candidates of each layer by one byte of their key, as far as their key is known. Bytes of the first word
// are counted from lists; those of the others look at each weight whose first word is the known one.
#include <array>
#include <mutex>

#include "../arguments.h"
#include "parallel.h"
#include "radix_select.h"
#include "update.h"

namespace dstee::cpu {
namespace {

using Counts = std::array<int32_t, 256>;

// The byte that is asked for, of one layer.
class Byte {
 public:
  Byte(const Update& u, const HistogramArguments& a, int layer)
      : u_(u), layer_(layer), growth_(a.growth), word_(a.word), shift_(a.shift), total_(a.total[static_cast<size_t>(layer)]) {
    for (int j = 0; j < 3; ++j) prefix_[j] = read<int64_t>(a.prefix.const_data_ptr(), 3 * layer + j);
    const int64_t last = word_ == 0 ? (int64_t{256} << shift_) - 1 : 0, first = prefix_[0] & ~last;
    possible_ = first >= 0 && first <= int64_t{UINT32_MAX};
    low = static_cast<uint32_t>(first);
    high = static_cast<uint32_t>(first + last);
  }
  bool possible() const { return possible_; }  // whether any candidate can count

  // A candidate whose first word lies in [low, high].
  void count(uint32_t first_word, int64_t i, Counts& found) const {
    if (word_ == 0) {
      ++found[first_word >> shift_ & 255];
      return;
    }
    const int64_t signal = growth_ && u_.bonus ? Weight(u_, layer_, i).signal_rank() : 0;
    if (word_ == 2 && signal != prefix_[1]) return;
    const int64_t value = word_ == 1 ? signal : place(i);
    if (value >> shift_ >> 8 == prefix_[word_] >> shift_ >> 8) ++found[value >> shift_ & 255];
  }

  // The last word of a key.
  int64_t place(int64_t i) const {
    const Place* part = u_.place_of(static_cast<size_t>(layer_));
    return total_ - 1 - (part ? static_cast<int64_t>(global_index(*part, static_cast<uint64_t>(i))) : i);
  }

  uint32_t low, high;  // of first words that count

 private:
  const Update& u_;
  int layer_;
  bool growth_, possible_;
  int64_t word_, shift_, total_, prefix_[3];
};

// Growth candidates that were inactive.
void count_inactive(const Update& u, const Piece& piece, const Byte& byte, Counts& found) {
  const auto layer = static_cast<size_t>(piece.layer);
  const Layer& l = u.layers[layer];
  const bool random = !u.seeds.empty();
  std::array<uint32_t, kBlock + kMaxLanes> score, where;
  GrowScan scan;
  scan.bonus = u.bonus_of(layer);
  scan.bonus_size = u.bonus_size;
  scan.seed = random ? u.seeds[layer] : 0;
  scan.place = u.place_of(layer);
  scan.low_score = byte.low;
  std::array<uint8_t, kBlock / 8> plane;
  uint8_t unchanged[kBlock / 8 + 4];
  uint16_t none[kMostGroups];
  scan.bits = unchanged;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    scan.before = l.bits + begin / 8;
    scan.signal = random ? nullptr : at(l.grow, begin, l.grow_dtype);
    scan.counts = l.counts ? l.counts + begin : nullptr;
    scan.first_index = static_cast<uint64_t>(begin);
    const size_t listed =
        loops().scan_grow[random ? kRandom : l.grow_dtype](scan, n, {score.data(), plane.data(), none}).listed;
    loops().places_of(plane.data(), n, 0, where.data());
    for (size_t j = 0; j < listed; ++j)
      if (score[j] <= byte.high) byte.count(score[j], begin + where[j], found);
  }
}

// Growth candidates that were active: those whose key of the drop, word by word, is at least that of their layer.
void count_dropped(const Update& u, const Piece& piece, const void* drop_from, const Byte& byte, Counts& found) {
  const auto word = [&](int j) { return read<int64_t>(drop_from, 3 * piece.layer + j); };
  const int64_t first = word(0), second = word(1), least_place = word(2);
  if (first > int64_t{UINT32_MAX}) return;
  for_active_keys(u.layers, piece, kSmallest, static_cast<uint32_t>(std::max<int64_t>(first, 0)), UINT32_MAX,
                  [&](uint32_t key, int64_t i) {
                    if (key == first && (second > 0 || (second == 0 && byte.place(i) < least_place))) return;
                    const uint32_t score = Weight(u, piece.layer, i).score_rank();
                    if (score >= byte.low && score <= byte.high) byte.count(score, i, found);
                  });
}

}  // namespace

Tensor key_histogram(const HistogramArguments& a) {
  const StrictFloat strict;  // for what is computed outside the workers
  Update u;
  u.layers = read_histogram(DeviceType::CPU, a);
  u.round = read_round(a.round, a.round_tensor);
  if (a.bonus)
    u.set_bonus(a.bonus->const_data_ptr(), a.bonus_scale ? a.bonus_scale->const_data_ptr() : nullptr, a.bonus->numel());
  u.seeds.assign(a.grow_seeds.begin(), a.grow_seeds.end());
  u.where = places_of(a.where);
  u.workers = worker_count(total_weights(u.layers));
  u.pieces = cut_pieces(u.layers);

  const auto L = static_cast<int64_t>(u.layers.size());
  Tensor out = torch::stable::empty({L, 256}, torch::headeronly::ScalarType::Int);
  auto* to = static_cast<int32_t*>(out.mutable_data_ptr());
  std::fill(to, to + 256 * L, 0);
  std::mutex merge;
  for_tickets(u.workers, static_cast<int64_t>(u.pieces.size()), [&](int, int64_t p) {
    const Piece& piece = u.pieces[p];
    const auto layer = static_cast<size_t>(piece.layer);
    const Byte byte(u, a, piece.layer);
    if (!byte.possible()) return;
    Counts found{};
    if (a.growth) {
      count_inactive(u, piece, byte, found);
      if (a.drop_from) count_dropped(u, piece, a.drop_from->const_data_ptr(), byte, found);
    } else {
      for_active_keys(u.layers, piece, kSmallest, byte.low, byte.high,
                      [&](uint32_t key, int64_t i) { byte.count(key, i, found); });
    }
    const std::lock_guard<std::mutex> lock(merge);
    for (size_t b = 0; b < found.size(); ++b) to[256 * layer + b] += found[b];
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("key_histogram", TORCH_BOX(&key_histogram_entry<key_histogram>)); }

}  // namespace dstee::cpu

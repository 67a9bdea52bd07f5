// What one drop_grow_ call works on, and one weight of it at a time.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "packed_rows.h"
#include "prefetch.h"

namespace dstee::cpu {

// One call: its layers and options, numbers of weights clipped to what each layer has.
struct Update {
  std::vector<Layer> layers;
  std::vector<Piece> pieces;
  Rows rows;                  // of the masks before the update
  std::vector<void*> packed;  // one per layer: its momenta, in these rows, and none in the layer; or empty
  std::vector<int64_t> k_drop, k_grow;
  std::vector<uint64_t> seeds;   // one per layer, or empty: growth by a hash
  std::vector<Place> where;      // one per layer, or empty: wholes
  const float* bonus = nullptr;  // null: the counters do not enter the score
  size_t bonus_stride = 0;       // from the table of a layer to that of the next
  std::vector<float> scaled;     // the tables, where they are not the caller's
  uint32_t bonus_size = 0;       // see counter_of
  int32_t round = 0;
  bool regrow = true, reset_regrown = false, sgd = false;
  SgdRule rule{};
  int workers = 1;
  double margin_share = 1;  // see test_limits.h

  // One table for all layers; or, with `scales`, one of float64 units that are worth as much as they say.
  void set_bonus(const void* table, const void* scales, int64_t size) {
    bonus = static_cast<const float*>(table);
    bonus_size = static_cast<uint32_t>(size);
    if (!scales) return;
    bonus_stride = bonus_size;
    scaled.resize(layers.size() * bonus_stride);
    for (size_t i = 0; i < layers.size(); ++i)
      for (size_t j = 0; j < bonus_stride; ++j)
        scaled[i * bonus_stride + j] =
            scaled_bonus(read<float>(scales, static_cast<int64_t>(i)), read<double>(table, static_cast<int64_t>(j)));
    bonus = scaled.data();
  }
  const float* bonus_of(size_t layer) const { return bonus ? bonus + layer * bonus_stride : nullptr; }
  int64_t nnz(size_t layer) const { return rows.of_layer[layer]; }
  bool packs() const { return !packed.empty(); }
  void clear_row(size_t layer, int64_t row) const {
    const Dtype dtype = layers[layer].dtype;
    memset(at(packed[layer], row, dtype), 0, static_cast<size_t>(element_size(dtype)));
  }
  const Place* place_of(size_t layer) const { return where.empty() ? nullptr : &where[layer]; }
  bool moves(size_t layer) const { return (k_drop[layer] | k_grow[layer]) != 0; }
};

// First in the order (score, |signal|) descending, then index ascending. As one number, larger first: score << 32 | signal.
using GrowKey = uint64_t;

// One weight: the plain form of what the loops do, for samples, ties and the exact fallback.
class Weight {
 public:
  Weight(const Update& u, int layer, int64_t i) : u_(u), l_(u.layers[layer]), layer_(static_cast<size_t>(layer)), i_(i) {}

  bool active() const { return is_active(l_.bits, i_); }
  uint32_t drop_key() const { return dstee::drop_key(value_at(l_.drop, i_, l_.drop_dtype)); }

  float signal() const {
    if (u_.seeds.empty()) return std::fabs(value_at(l_.grow, i_, l_.grow_dtype));
    const Place* place = u_.place_of(layer_);
    const uint64_t i = place ? global_index(*place, static_cast<uint64_t>(i_)) : static_cast<uint64_t>(i_);
    return static_cast<float>(random24(static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), u_.seeds[layer_])) *
           kRandomUnit;
  }
  uint32_t signal_rank() const { return rank_of(signal()); }
  // By the table of the layer, which loops look up once.
  uint32_t score_rank(const float* bonus) const {
    if (!bonus) return signal_rank();
    return rank_of(score(signal(), read<float>(bonus, counter_of(stored(), active(), u_.round, u_.bonus_size))));
  }
  uint32_t score_rank() const { return score_rank(u_.bonus_of(layer_)); }
  GrowKey grow_key() const { return static_cast<GrowKey>(score_rank()) << 32 | signal_rank(); }

  void prefetch() const {
    prefetch_state();
    if (l_.grow && u_.seeds.empty()) cpu::prefetch(at(l_.grow, i_, l_.grow_dtype));
    prefetch_weight();
  }
  void prefetch_weight() const {
    cpu::prefetch(at(l_.w, i_, l_.dtype));
    if (l_.m) cpu::prefetch(at(l_.m, i_, l_.dtype));
  }
  void prefetch_state() const {
    cpu::prefetch(l_.bits + i_ / 8);
    if (l_.counts) cpu::prefetch(l_.counts + i_);
  }

  void drop() const {
    l_.bits[i_ / 8] = static_cast<uint8_t>(l_.bits[i_ / 8] & ~(1u << (i_ % 8)));
    flip();
    clear();
  }
  void grow() const {
    l_.bits[i_ / 8] = static_cast<uint8_t>(l_.bits[i_ / 8] | 1u << (i_ % 8));
    flip();
  }
  void clear() const { restore(0, 0); }
  // Weight and momentum become numbers with these bits, behind zeros where they have 16.
  void restore(uint32_t w, uint32_t m) const {
    write(l_.w, w);
    if (l_.m) write(l_.m, m);
  }
  // The counter as it is after a change of the mask.
  void flip() const {
    if (!l_.counts) return;
    const auto flipped = static_cast<int16_t>(flip_count<int32_t>(stored(), u_.round));
    memcpy(static_cast<void*>(l_.counts + i_), &flipped, sizeof flipped);
  }

 private:
  int16_t stored() const { return read<int16_t>(l_.counts, i_); }
  void write(void* base, uint32_t raw) const {
    const auto half = static_cast<uint16_t>(raw);
    if (l_.dtype == kF32)
      memcpy(at(base, i_, l_.dtype), &raw, sizeof raw);
    else
      memcpy(at(base, i_, l_.dtype), &half, sizeof half);
  }

  const Update& u_;
  const Layer& l_;
  size_t layer_;
  int64_t i_;
};

}  // namespace dstee::cpu

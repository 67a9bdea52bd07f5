// Random numbers and tensors, the same with every compiler and standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../../csrc/arguments.h"

namespace cpu_host {

using dstee::Tensor;
using dstee::Tensors;
using torch::headeronly::ScalarType;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  bool chance(int percent) { return below(100) < percent; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<int64_t>(list.size()))];
  }

 private:
  uint64_t state_;
};

class Digest {
 public:
  void add(const void* p, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) value_ = (value_ ^ static_cast<const unsigned char*>(p)[i]) * 0x100000001B3u;
  }
  // A NaN counts as any other: which one an operation passes on is up to the compiler.
  void add(const Tensor& t) {
    const auto* p = static_cast<const char*>(t.const_data_ptr());
    const auto size = static_cast<size_t>(size_of(t.scalar_type()));
    for (int64_t i = 0; i < t.numel(); ++i, p += size) {
      const bool nan = (t.scalar_type() == ScalarType::Float && std::isnan(dstee::read<float>(p))) ||
                       (t.scalar_type() == ScalarType::Half && std::isnan(dstee::to_float(dstee::read<dstee::f16>(p)))) ||
                       (t.scalar_type() == ScalarType::BFloat16 && std::isnan(dstee::to_float(dstee::read<dstee::bf16>(p))));
      if (nan)
        add("NaN", 3);
      else
        add(p, size);
    }
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

inline void put(const Tensor& t, int64_t i, double x) {
  void* p = static_cast<char*>(t.mutable_data_ptr()) + i * size_of(t.scalar_type());
  const auto store = [p](auto v) { memcpy(p, &v, sizeof v); };
  dstee::bf16 b{};
  dstee::f16 h{};
  switch (t.scalar_type()) {
    case ScalarType::BFloat16:
      dstee::from_float(static_cast<float>(x), b);
      return store(b);
    case ScalarType::Half:
      dstee::from_float(static_cast<float>(x), h);
      return store(h);
    case ScalarType::Double:
      return store(x);
    case ScalarType::Short:
      return store(static_cast<int16_t>(x));
    case ScalarType::Long:
      return store(static_cast<int64_t>(x));
    default:
      return store(static_cast<float>(x));
  }
}

inline Tensor scalar(double x, ScalarType dtype, int64_t offset) {
  Tensor t({1}, dtype, offset);
  put(t, 0, x);
  return t;
}

// Numbers around 0, many of them equal where asked for, and a few that are odd.
inline void fill(Random& random, const Tensor& t, int equal_percent) {
  for (int64_t i = 0; i < t.numel(); ++i) {
    double x = random.chance(equal_percent) ? 0.25 : 2 * random.unit() - 1;
    if (random.below(500) == 0) x = random.one_of({0.0, -0.0, 1e-42, 3e38, HUGE_VAL, -HUGE_VAL, std::nan("")});
    put(t, i, x);
  }
}

// The arguments of one update, k of one layer after another at most what its mask has.
struct Case {
  Tensors params, grads, momenta, mask_bits, counts, drop_scores, grow_signal;
  std::vector<int64_t> k, k_grow, grow_seeds, where, sizes;
  std::optional<Tensor> none, total, drop_from, k_tensor, k_grow_tensor, bonus, bonus_scale, round_tensor, lr, grad_scale,
      found_inf;
  std::vector<double> sgd;
  int64_t round = 0;
  bool regrow = true, reset_regrown = false, packed_momenta = false;

  explicit Case(uint64_t seed, bool large) {
    Random random(seed);
    const auto dtype = random.one_of({ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    const bool counted = random.chance(70), stepped = random.chance(60), with_momentum = random.chance(50);
    const bool by_hash = random.chance(20), own_signal = random.chance(25), own_score = random.chance(25);
    const bool uneven = random.chance(40), placed = random.chance(30), scaled = random.chance(30);
    const int equal = random.one_of({0, 0, 60, 99}), density = random.one_of({0, 2, 10, 50, 97, 100});
    round = random.below(6);
    regrow = random.chance(60);
    for (int64_t layers = 1 + random.below(3); layers > 0; --layers) {
      const int64_t n = large ? random.one_of({40009, 70001, 140009}) : random.one_of({0, 1, 7, 8, 17, 64, 1000, 4097, 8200});
      const auto like = [&](ScalarType type) { return Tensor({n}, type, random.chance(20)); };
      const auto filled = [&](Tensors& list, ScalarType type) {
        list.push_back(like(type));
        fill(random, list.back(), equal);
      };
      Tensor bits({(n + 7) / 8}, ScalarType::Byte), stored = like(ScalarType::Short);
      int64_t nnz = 0;
      for (int64_t i = 0; i < n; ++i) {
        const bool active = random.chance(density);
        nnz += active;
        static_cast<uint8_t*>(bits.mutable_data_ptr())[i / 8] |= static_cast<uint8_t>(active << (i % 8));
        const int64_t N = random.chance(90) ? 0 : random.below(round + 2);
        put(stored, i, static_cast<double>(active ? round + 1 - N : N));
      }
      mask_bits.push_back(bits);
      sizes.push_back(n);
      filled(params, dtype);
      filled(grads, dtype);
      if (with_momentum) filled(momenta, dtype);
      if (counted) counts.push_back(stored);
      if (own_score) filled(drop_scores, random.one_of({ScalarType::Float, dtype}));
      if (own_signal) filled(grow_signal, random.one_of({ScalarType::Float, dtype}));
      if (by_hash) grow_seeds.push_back(static_cast<int64_t>(random.next()));
      k.push_back(random.chance(30) ? nnz : random.below(nnz + 1) / 3);
      const int64_t most = n - nnz + (regrow ? k.back() : 0);
      if (uneven) k_grow.push_back(random.chance(30) ? most : random.below(most / random.one_of({1, 4, 40}) + 1));
      const int64_t run = random.one_of({1, 5, 16, 1000, 1 << 20});
      if (placed)
        where.insert(where.end(), {random.one_of<int64_t>({0, 3, 0xFFFFFFFF, 1LL << 40}), run, run + random.below(9)});
    }
    reset_regrown = random.chance(50);
    if (counted && random.chance(80)) {
      const int64_t size = round + 2 + random.one_of({0, 0, 40});
      bonus = Tensor({size}, scaled ? ScalarType::Double : ScalarType::Float, random.chance(20));
      for (int64_t i = 0; i < size; ++i) put(*bonus, i, 1e-3 / (static_cast<double>(i) + 0.5));
    }
    if (bonus && scaled) {
      bonus_scale = Tensor({static_cast<int64_t>(k.size())}, ScalarType::Float, random.chance(20));
      for (int64_t i = 0; i < bonus_scale->numel(); ++i) put(*bonus_scale, i, random.one_of({0.0, 1e-3, 1.0, 1e6, HUGE_VAL}));
    }
    if (stepped) {
      const double momentum = with_momentum && random.chance(80) ? 0.9 : 0.0;
      sgd = {0.1, momentum, random.chance(50) * 0.1, random.chance(50) * 1e-2};
      for (int option = 0; option < 3; ++option) sgd.push_back(random.chance(30));
    }
    const auto type = random.one_of({ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
    const auto maybe = [&](std::optional<Tensor>& t, double x) {
      if (random.chance(30)) t = scalar(x, type, random.chance(50));
    };
    maybe(lr, 0.05);
    maybe(grad_scale, 8);
    maybe(found_inf, random.chance(10));
    if (random.chance(30)) round_tensor = scalar(static_cast<double>(round), ScalarType::Long, random.chance(50));
    const auto in_tensor = [&](std::optional<Tensor>& t, const std::vector<int64_t>& list, int percent) {
      if (list.empty() || !random.chance(percent)) return;
      t = Tensor({static_cast<int64_t>(list.size())}, ScalarType::Long, random.chance(50));
      for (size_t i = 0; i < list.size(); ++i) put(*t, static_cast<int64_t>(i), static_cast<double>(list[i]));
    };
    in_tensor(k_tensor, k, 30);
    in_tensor(k_grow_tensor, k_grow, 30);
    if (random.chance(70)) {
      drop_from = Tensor({static_cast<int64_t>(sizes.size()), 3}, ScalarType::Long, random.chance(50));
      for (int64_t i = 0; i < drop_from->numel(); i += 3) {
        put(*drop_from, i, random.one_of({0.0, 0x1p62, 1.0 * 0x41000000, 1.0 * (random.next() >> 33)}));  // that of 0.25
        put(*drop_from, i + 1, random.one_of({0.0, 0.0, 1.0}));
        put(*drop_from, i + 2, static_cast<double>(random.below(10000)));
      }
    }
    total = scalar(static_cast<double>(random.below(9000)), ScalarType::Long, random.chance(50));
  }

  // Copies that share no memory would take more code than making the case anew.
  Case(const Case&) = delete;

  // The momenta of the active weights, one tensor for each layer.
  Tensors active_momenta() const {
    Tensors found;
    for (size_t i = 0; i < momenta.size(); ++i) {
      const auto* bits = static_cast<const uint8_t*>(mask_bits[i].const_data_ptr());
      const auto size = static_cast<size_t>(size_of(momenta[i].scalar_type()));
      int64_t nnz = 0;
      for (int64_t j = 0; j < sizes[i]; ++j) nnz += dstee::is_active(bits, j);
      found.emplace_back(std::vector<int64_t>{nnz}, momenta[i].scalar_type(), static_cast<int64_t>(i % 2));
      auto* to = static_cast<char*>(found.back().mutable_data_ptr());
      for (int64_t j = 0; j < sizes[i]; ++j) {
        if (!dstee::is_active(bits, j)) continue;
        memcpy(to, static_cast<const char*>(momenta[i].const_data_ptr()) + static_cast<size_t>(j) * size, size);
        to += size;
      }
    }
    return found;
  }
  void clear_inactive_momenta() const {
    for (size_t i = 0; i < momenta.size(); ++i)
      for (int64_t j = 0; j < sizes[i]; ++j)
        if (!dstee::is_active(static_cast<const uint8_t*>(mask_bits[i].const_data_ptr()), j)) put(momenta[i], j, 0);
  }

  dstee::StepArguments step() const {
    return {params, grads, momenta, mask_bits, sgd, lr, grad_scale, found_inf, packed_momenta};
  }
  dstee::UpdateArguments update() const {
    return {params,        grads,  momenta,       mask_bits, counts,       k,           k_tensor,      k_grow,
            k_grow_tensor, bonus,  bonus_scale,   round,     round_tensor, drop_scores, grow_signal,   grow_seeds,
            where,         regrow, reset_regrown, sgd,       lr,           found_inf,   packed_momenta};
  }
  dstee::ScaleArguments scale() const { return {grads, mask_bits, k, none, round, round_tensor}; }
  dstee::HistogramArguments histogram(bool growth, int64_t word, int64_t shift, const Tensor& prefix) const {
    return {params,      grads,      mask_bits, counts, bonus,  bonus_scale, round, round_tensor, drop_scores,
            grow_signal, grow_seeds, where,     sizes,  growth, word,        shift, prefix,       drop_from};
  }
  dstee::KeepArguments keep(uint64_t seed) const {
    return {params, momenta, mask_bits, counts, seed % 2 ? grads : drop_scores, 0, total, round, round_tensor};
  }
  uint64_t digest() const {
    Digest digest;
    for (const Tensors* list : {&params, &grads, &momenta, &mask_bits, &counts, &drop_scores, &grow_signal})
      for (const Tensor& t : *list) digest.add(t);
    return digest.value();
  }
};

}  // namespace cpu_host

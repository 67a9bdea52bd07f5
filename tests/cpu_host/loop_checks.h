// Every loop of csrc/cpu/loops.h on one instruction set against the scalar form.
#pragma once

#include <algorithm>

#include "../../csrc/cpu/loops.h"
#include "random_case.h"

namespace cpu_host {

using dstee::cpu::GrowScan;
using dstee::cpu::kMaxLanes;
using dstee::cpu::Loops;

// A list whose entries behind the slack of whole vectors must not change.
struct List {
  explicit List(int64_t n) : entries(static_cast<size_t>(n) + kMaxLanes + 1, kGuard) {}
  uint32_t* data() { return entries.data(); }
  bool whole() const { return entries.back() == kGuard; }
  bool same(const List& o, size_t count) const {
    return std::equal(entries.begin(), entries.begin() + static_cast<int64_t>(count), o.entries.begin());
  }

  static constexpr uint32_t kGuard = 0xDEADBEEF;
  std::vector<uint32_t> entries;
};

class LoopChecks {
 public:
  LoopChecks(const Loops& plain, const Loops& loops, uint64_t seed) : plain_(plain), loops_(loops), random_(seed) {
    n_ = random_.below(2) ? 1 + random_.below(70) : 1 + random_.below(9000);
    bits_ = Tensor({(n_ + 7) / 8}, ScalarType::Byte);
    const int density = random_.one_of({0, 3, 50, 100});
    for (int64_t i = 0; i < n_; ++i)
      static_cast<uint8_t*>(bits_.mutable_data_ptr())[i / 8] |= static_cast<uint8_t>(random_.chance(density) << (i % 8));
  }

  // Empty, or the name of the loop that differs.
  const char* run() {
    for (int dtype = 0; dtype < 3; ++dtype) {
      if (!step(dtype)) return "step";
      if (!step_packed(dtype)) return "step_packed";
      if (!scan_drop(dtype)) return "scan_drop";
      if (!scan_keys(dtype)) return "scan_keys";
    }
    for (int dtype = 0; dtype < 4; ++dtype)
      if (!scan_grow(dtype)) return "scan_grow";
    if (!noise()) return "noise";
    if (!between()) return "keep_between or copy_between";
    if (loops_.count_bits(bits(), bits_.numel()) != plain_.count_bits(bits(), bits_.numel())) return "count_bits";
    return "";
  }

 private:
  const uint8_t* bits() const { return static_cast<const uint8_t*>(bits_.const_data_ptr()); }
  Tensor numbers(int dtype, uint64_t seed) {
    constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};
    Random random(seed);
    Tensor t({n_}, kTypes[dtype], random.chance(30));
    fill(random, t, random.one_of({0, 50, 99}));
    return t;
  }
  bool step(int dtype) {
    dstee::SgdRule rule{0.1f,
                        0.9f,
                        0.9f,
                        0.01f,
                        4.0f,
                        random_.chance(50),
                        random_.chance(50),
                        random_.chance(50),
                        random_.chance(50),
                        random_.chance(50),
                        random_.chance(50)};
    const uint64_t seed = random_.next();
    uint64_t digests[2];
    for (int form = 0; form < 2; ++form) {
      Tensor w = numbers(dtype, seed), g = numbers(dtype, seed + 1), m = numbers(dtype, seed + 2);
      const auto run = (form ? loops_ : plain_).step[dtype];
      run(w.mutable_data_ptr(), g.const_data_ptr(), rule.has_momentum ? m.mutable_data_ptr() : nullptr, bits(), n_, rule);
      Digest digest;
      for (const Tensor& t : {w, g, m}) digest.add(t);
      digests[form] = digest.value();
    }
    return digests[0] == digests[1];
  }
  // Against the scalar form, and against momenta at the weights' places.
  bool step_packed(int dtype) {
    const dstee::SgdRule rule{0.1f, 0.9f, 0.9f, 0.01f, 1.0f, true, random_.chance(50), false, random_.chance(50), false, false};
    const uint64_t seed = random_.next();
    const Tensor g = numbers(dtype, seed + 1);
    Tensor w = numbers(dtype, seed), m = numbers(dtype, seed + 2);
    const int64_t active = plain_.count_bits(bits(), bits_.numel());
    Tensor packed({active}, m.scalar_type(), random_.chance(30));
    const auto gather = [&](const Tensor& out) {
      for (int64_t i = 0, to = 0; i < n_; ++i)
        if (dstee::is_active(bits(), i)) {
          memcpy(dstee::at(out.mutable_data_ptr(), to, static_cast<dstee::Dtype>(dtype)),
                 dstee::at(m.mutable_data_ptr(), i, static_cast<dstee::Dtype>(dtype)),
                 static_cast<size_t>(size_of(m.scalar_type())));
          ++to;
        }
    };
    gather(packed);
    Tensor w2 = numbers(dtype, seed), left({active}, m.scalar_type(), random_.chance(30));
    loops_.step_packed[dtype](w2.mutable_data_ptr(), g.const_data_ptr(), packed.mutable_data_ptr(), active, bits(), n_, rule);
    plain_.step[dtype](w.mutable_data_ptr(), g.const_data_ptr(), m.mutable_data_ptr(), bits(), n_, rule);
    gather(left);
    Digest one, other;
    one.add(w);
    one.add(left);
    other.add(w2);
    other.add(packed);
    return one.value() == other.value();
  }
  bool scan_drop(int dtype) {
    const Tensor x = numbers(dtype, random_.next());
    const auto low = random_.one_of({0u, dstee::kMaxRank / 2, dstee::drop_key(0.25f), dstee::kMaxRank});
    List key(n_), where(n_), key2(n_), where2(n_);
    const size_t count = plain_.scan_drop[dtype](x.const_data_ptr(), bits(), n_, low, 5, key.data(), where.data());
    const size_t count2 = loops_.scan_drop[dtype](x.const_data_ptr(), bits(), n_, low, 5, key2.data(), where2.data());
    return count == count2 && key.same(key2, count) && where.same(where2, count) && key2.whole() && where2.whole();
  }
  bool scan_keys(int dtype) {
    const Tensor x = numbers(dtype, random_.next());
    const auto order = random_.one_of({dstee::cpu::kLargest, dstee::cpu::kLargestSigned, dstee::cpu::kSmallest});
    const auto low = random_.one_of({0u, 1u, dstee::kMaxRank / 2, dstee::kMaxRank}), high = random_.one_of({low, ~0u, ~0u});
    List key(n_), where(n_), key2(n_), where2(n_);
    const auto run = [&](const Loops& loops, List& keys, List& indices) {
      return loops.scan_keys[dtype](x.const_data_ptr(), bits(), n_, order, low, high, 5, keys.data(), indices.data());
    };
    const size_t count = run(plain_, key, where), count2 = run(loops_, key2, where2);
    return count == count2 && key.same(key2, count) && where.same(where2, count) && key2.whole() && where2.whole();
  }
  bool noise() {
    const auto run = static_cast<uint64_t>(random_.one_of({1, 7, 15, 16, 300, 1 << 20}));
    const dstee::Place place{random_.next() >> 2, run, run + static_cast<uint64_t>(random_.below(3))};
    const int64_t seeds[] = {static_cast<int64_t>(random_.next()), 0, -1, 7};
    const uint64_t first = random_.next() >> 34;
    uint64_t digests[2];
    for (int form = 0; form < 2; ++form) {
      const Tensor out({n_}, ScalarType::Float, n_ % 4);
      (form ? loops_ : plain_).noise(static_cast<float*>(out.mutable_data_ptr()), n_, first, place, seeds);
      Digest digest;
      digest.add(out);
      digests[form] = digest.value();
    }
    return digests[0] == digests[1];
  }
  bool scan_grow(int dtype) {
    const Tensor x = numbers(dtype % 3, random_.next());
    Tensor counts({n_}, ScalarType::Short, random_.chance(30));
    const int64_t size = random_.one_of({1, 2, 8, 9, 32, 33, 50});
    Tensor bonus({size}, ScalarType::Float, random_.chance(30));
    for (int64_t i = 0; i < n_; ++i) put(counts, i, static_cast<double>(random_.below(70) - 10));
    for (int64_t i = 0; i < size; ++i) put(bonus, i, random_.chance(20) ? 0.0 : random_.unit());
    GrowScan scan;
    scan.signal = dtype < 3 ? x.const_data_ptr() : nullptr;
    if (random_.chance(70)) {
      scan.counts = static_cast<const int16_t*>(counts.const_data_ptr());
      scan.bonus = static_cast<const float*>(bonus.const_data_ptr());
      scan.bonus_size = static_cast<uint32_t>(size);
    }
    scan.seed = random_.next();
    scan.first_index = random_.next() >> (24 + random_.below(40));
    const auto run = static_cast<uint64_t>(random_.one_of({1, 7, 15, 16, 300, 1 << 20}));
    const dstee::Place place{random_.next() >> 2, run, run + static_cast<uint64_t>(random_.below(3))};
    if (random_.chance(50)) scan.place = &place;
    scan.low_score = random_.one_of({1u, dstee::rank_of(0.25f), dstee::rank_of(0.5f), dstee::kMaxRank});
    if (scan.bonus) scan.low_signal = random_.one_of({0u, dstee::rank_of(0.1f), dstee::rank_of(0.25f)});
    List score(n_), where(n_), score2(n_), where2(n_);
    const size_t count = plain_.scan_grow[dtype](scan, bits(), n_, 5, score.data(), where.data());
    const size_t count2 = loops_.scan_grow[dtype](scan, bits(), n_, 5, score2.data(), where2.data());
    return count == count2 && score.same(score2, count) && where.same(where2, count) && score2.whole() && where2.whole();
  }
  bool between() {
    const auto count = static_cast<size_t>(n_);
    List key(n_), a(n_), b(n_), out(n_), out2(n_);
    for (size_t j = 0; j < count; ++j) {
      key.entries[j] = static_cast<uint32_t>(random_.below(40)) << random_.one_of({0, 0, 26});
      a.entries[j] = static_cast<uint32_t>(random_.next());
      b.entries[j] = static_cast<uint32_t>(random_.next());
    }
    List a2 = a, b2 = b;
    const auto low = static_cast<uint32_t>(random_.below(20)), high = low + static_cast<uint32_t>(random_.below(20));
    const size_t found = plain_.copy_between(key.data(), count, low, high, out.data());
    const size_t found2 = loops_.copy_between(key.data(), count, low, high, out2.data());
    const bool both = random_.chance(50);
    const size_t kept = plain_.keep_between(key.data(), count, low, high, a.data(), both ? b.data() : nullptr);
    const size_t kept2 = loops_.keep_between(key.data(), count, low, high, a2.data(), both ? b2.data() : nullptr);
    uint32_t ends[4] = {~0u, 0, ~0u, 0};
    plain_.min_max(key.data(), count, &ends[0], &ends[1]);
    loops_.min_max(key.data(), count, &ends[2], &ends[3]);
    return found == found2 && out.same(out2, found) && out2.whole() && kept == kept2 && kept == found && a.same(a2, kept) &&
           (!both || b.same(b2, kept)) && a2.whole() && ends[0] == ends[2] && ends[1] == ends[3];
  }

  const Loops &plain_, &loops_;
  Random random_;
  int64_t n_ = 0;
  Tensor bits_{{0}, ScalarType::Byte};
};

}  // namespace cpu_host

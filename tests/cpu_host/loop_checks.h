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
      if (!repack(dtype)) return "repack";
      if (!scan_drop(dtype)) return "scan_drop";
      if (!scan_keys(dtype)) return "scan_keys";
    }
    for (int dtype = 0; dtype < 4; ++dtype)
      if (!scan_grow(dtype)) return "scan_grow";
    if (!noise()) return "noise";
    if (!between()) return "what looks at lists";
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
  // Against picking each by its number among the active weights before.
  bool repack(int dtype) {
    const int64_t active = plain_.count_bits(bits(), bits_.numel());
    const Tensor all = numbers(dtype, random_.next()), now({(n_ + 7) / 8}, ScalarType::Byte, random_.chance(30));
    const auto type = static_cast<dstee::Dtype>(dtype);
    Tensor rows({active}, all.scalar_type(), random_.chance(30));
    if (active > 0)
      memcpy(rows.mutable_data_ptr(), all.const_data_ptr(), static_cast<size_t>(active * dstee::element_size(type)));
    std::vector<uint32_t> expected;
    const int moved = random_.one_of({0, 10, 90});
    for (int64_t i = 0, row = 0; i < n_; ++i) {
      const bool was = dstee::is_active(bits(), i), is = was != random_.chance(moved);
      static_cast<uint8_t*>(now.mutable_data_ptr())[i / 8] |= static_cast<uint8_t>(is << (i % 8));
      uint32_t raw = 0;
      if (was) memcpy(&raw, dstee::at(rows.const_data_ptr(), row++, type), static_cast<size_t>(dstee::element_size(type)));
      if (is) expected.push_back(raw);
    }
    List out(static_cast<int64_t>(expected.size()));
    loops_.repack[dtype](rows.const_data_ptr(), active, bits(), static_cast<const uint8_t*>(now.const_data_ptr()), n_,
                         out.data());
    return out.whole() && std::equal(expected.begin(), expected.end(), out.entries.begin());
  }
  // What a loop of the sweep reads and writes: a block with its mask, counters and tables.
  struct Block {
    Block(LoopChecks& checks, int dtype, int kind, uint64_t seed)
        : n(std::min<int64_t>(checks.n_, dstee::cpu::kBlock)),
          w(checks.numbers(dtype, seed)),
          m(checks.numbers(dtype, seed + 1)),
          signal(checks.numbers(kind % 3, seed + 2)),
          before({(n + 7) / 8}, ScalarType::Byte),
          bits({(n + 7) / 8}, ScalarType::Byte),
          counts({n}, ScalarType::Short, seed % 3 == 0),
          bonus({Random(seed).one_of({1, 2, 8, 9, 32, 33, 50})}, ScalarType::Float, seed % 5 == 0),
          key(n),
          regrow(n),
          undo_w(n),
          undo_m(n),
          where(n),
          plane(static_cast<size_t>((n + 31) / 32 * 4)),
          groups(dstee::cpu::kMostGroups),
          next_groups(dstee::cpu::kMostGroups) {
      Random random(seed);
      for (const Tensor& t : {before, bits}) memcpy(t.mutable_data_ptr(), checks.bits(), static_cast<size_t>((n + 7) / 8));
      for (int64_t i = 0; i < n; ++i) put(counts, i, static_cast<double>(random.below(70) - 10));
      for (int64_t i = 0; i < bonus.numel(); ++i) put(bonus, i, random.chance(20) ? 0.0 : random.unit());
    }
    const uint8_t* mask() const { return static_cast<const uint8_t*>(before.const_data_ptr()); }
    uint8_t* changed() const { return static_cast<uint8_t*>(bits.mutable_data_ptr()); }
    // Of the lists the first entries.
    uint64_t digest(size_t keys, size_t undone) const {
      Digest digest;
      for (const Tensor& t : {w, m, bits, counts}) digest.add(t);
      for (const List* list : {&key, &regrow, &where}) digest.add(list->entries.data(), keys * sizeof(uint32_t));
      for (const List* list : {&undo_w, &undo_m}) digest.add(list->entries.data(), undone * sizeof(uint32_t));
      return digest.value();
    }
    bool whole() const { return key.whole() && regrow.whole() && undo_w.whole() && undo_m.whole() && where.whole(); }

    int64_t n;
    Tensor w, m, signal, before, bits, counts, bonus;
    List key, regrow, undo_w, undo_m, where;
    std::vector<uint8_t> plane;
    std::vector<uint16_t> groups, next_groups;
  };

  bool scan_drop(int dtype) {
    const uint64_t seed = random_.next();
    const float low = random_.one_of({-1.0f, 0.1f, 0.4f}), sure = random_.one_of({-1.0f, 0.05f, 0.2f});
    const bool counted = random_.chance(70), valued = random_.chance(70), commits = random_.chance(70),
               near = random_.chance(50);
    uint64_t digests[2];
    for (int form = 0; form < 2; ++form) {
      const Loops& loops = form ? loops_ : plain_;
      Block block(*this, dtype, 0, seed);
      dstee::cpu::DropScan scan;
      scan.before = block.mask();
      scan.bits = block.changed();
      scan.x = block.w.const_data_ptr();
      if (commits) {
        scan.w = block.w.mutable_data_ptr();
        scan.m = near ? block.m.mutable_data_ptr() : nullptr;
        scan.m_is_near = seed % 2 == 0;
      }
      scan.signal = static_cast<const float*>(block.signal.const_data_ptr());
      if (counted) scan.counts = static_cast<int16_t*>(block.counts.mutable_data_ptr());
      if (valued) scan.bonus = static_cast<const float*>(block.bonus.const_data_ptr());
      scan.bonus_size = static_cast<uint32_t>(block.bonus.numel());
      scan.round = 40;
      scan.most = std::max(low, sure);
      scan.sure_below = sure;
      scan.low_score = 0.3f;
      scan.high_score = 0.6f;
      scan.groups = block.groups.data();
      scan.group_count = loops.active_groups(scan.before, block.n, block.groups.data());
      scan.next_groups = block.next_groups.data();
      const auto found = loops.scan_drop[dtype](scan, block.n,
                                                {block.key.data(), block.regrow.data(), block.undo_w.data(),
                                                 scan.m ? block.undo_m.data() : block.undo_w.data(), block.plane.data()});
      if (loops.places_of(block.plane.data(), block.n, 5, block.where.data()) != found.listed || !block.whole()) return false;
      digests[form] = block.digest(found.listed, scan.m ? found.gone : 0) + found.back;
    }
    return digests[0] == digests[1];
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
    const uint64_t seed = random_.next(), first = random_.next() >> (24 + random_.below(40));
    const auto run = static_cast<uint64_t>(random_.one_of({1, 7, 15, 16, 300, 1 << 20}));
    const dstee::Place place{random_.next() >> 2, run, run + static_cast<uint64_t>(random_.below(3))};
    const uint32_t low = random_.one_of({0u, 1u, dstee::rank_of(0.25f), dstee::rank_of(0.5f), dstee::kMaxRank});
    const uint32_t low_signal = random_.one_of({0u, dstee::rank_of(0.1f), dstee::rank_of(0.25f)});
    const float high = random_.one_of({0.4f, 0.9f, dstee::cpu::kInfinity});
    const bool counted = random_.chance(70), placed = random_.chance(50), passed_on = random_.chance(50);
    uint64_t digests[2];
    for (int form = 0; form < 2; ++form) {
      const Loops& loops = form ? loops_ : plain_;
      Block block(*this, 0, dtype, seed);
      Tensor signal({static_cast<int64_t>(8 * block.plane.size())}, ScalarType::Float);
      GrowScan scan;
      scan.before = block.mask();
      scan.bits = block.changed();
      scan.signal = dtype < 3 ? block.signal.const_data_ptr() : nullptr;
      if (counted) {
        scan.counts = static_cast<int16_t*>(block.counts.mutable_data_ptr());
        scan.bonus = static_cast<const float*>(block.bonus.const_data_ptr());
        scan.bonus_size = static_cast<uint32_t>(block.bonus.numel());
        scan.low_signal = low > 0 ? low_signal : 0;
      }
      scan.round = 40;
      scan.seed = seed;
      scan.first_index = first;
      if (placed) scan.place = &place;
      scan.low_score = low;
      scan.high_score = std::max(high, dstee::cpu::number_of(low));
      scan.signal_out = passed_on && dtype != dstee::kF32 ? static_cast<float*>(signal.mutable_data_ptr()) : nullptr;
      const auto found =
          loops.scan_grow[dtype](scan, block.n, {block.key.data(), block.plane.data(), block.next_groups.data()});
      if (loops.places_of(block.plane.data(), block.n, 5, block.where.data()) != found.listed || !block.whole()) return false;
      Digest digest;
      digest.add(signal);
      digests[form] = block.digest(found.listed, 0) + found.sure + digest.value();
    }
    return digests[0] == digests[1];
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
    const size_t found = plain_.copy_between(key.data(), count, low, high, a.data(), out.data());
    const size_t found2 = loops_.copy_between(key.data(), count, low, high, a.data(), out2.data());
    const size_t kept = plain_.keep_between(key.data(), count, low, high, a.data(), b.data());
    const size_t kept2 = loops_.keep_between(key.data(), count, low, high, a2.data(), b2.data());
    uint32_t ends[4] = {~0u, 0, ~0u, 0};
    plain_.min_max(key.data(), count, &ends[0], &ends[1]);
    loops_.min_max(key.data(), count, &ends[2], &ends[3]);
    if (plain_.count_between(key.data(), count, low, high) != found ||
        loops_.count_between(key.data(), count, low, high) != found)
      return false;
    uint32_t bins[2][64] = {};
    plain_.count_bins(key.data(), count, low, high, 1, bins[0]);
    loops_.count_bins(key.data(), count, low, high, 1, bins[1]);
    if (!std::equal(bins[0], bins[0] + 64, bins[1])) return false;
    return found == found2 && out.same(out2, found) && out2.whole() && kept == kept2 && kept == found && a.same(a2, kept) &&
           b.same(b2, kept) && a2.whole() && b2.whole() && ends[0] == ends[2] && ends[1] == ends[3];
  }

  const Loops &plain_, &loops_;
  Random random_;
  int64_t n_ = 0;
  Tensor bits_{{0}, ScalarType::Byte};
};

}  // namespace cpu_host

// The CPU kernels in a program of their own, for compilers, flags and sanitizers: random updates on every instruction set of
// this processor must agree bit for bit, and each loop with its scalar form. Prints a digest that every build must print.
//
//   cpu_host check CASES      all of that
//   cpu_host write | race | undefined      one fault, which a sanitizer must find
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "../../csrc/test_limits.h"
#include "loop_checks.h"

namespace dstee::cpu {
void masked_sgd_(const StepArguments& a);
void drop_grow_(const UpdateArguments& a);
void global_keep_(const KeepArguments& a);
Tensor key_histogram(const HistogramArguments& a);
Tensor growth_scale(const ScaleArguments& a);
Tensor count_below(const Tensors& tensors, const Tensors& mask_bits, const Tensor& thresholds);
void hashed_noise_(const Tensors& out, const std::vector<int64_t>& seeds, const std::vector<int64_t>& where);
Tensor pack_mask(const Tensor& mask);
Tensor unpack_mask(const Tensor& mask_bits, const std::vector<int64_t>& shape);
Tensor encode_counts(const Tensor& N, const Tensor& mask, int64_t round);
Tensor decode_counts(const Tensor& counts, const Tensor& mask_bits, int64_t round, const std::vector<int64_t>& shape);
Tensor count_outside(const Tensors& params, const Tensors& mask_bits);
Tensor count_active(const Tensors& mask_bits);
Tensor count_explored(const Tensors& counts, const Tensors& mask_bits);
}  // namespace dstee::cpu

namespace {

using namespace cpu_host;
namespace cpu = dstee::cpu;

// The ops that count, over the arguments of an update.
void add_counts(const Case& c, uint64_t seed, Digest& digest) {
  Random random(seed);
  const auto layers = static_cast<int64_t>(c.params.size());
  digest.add(cpu::growth_scale(c.scale()));
  Tensor thresholds({layers}, ScalarType::Float, random.chance(50)), prefix({layers, 3}, ScalarType::Long);
  for (int64_t i = 0; i < layers; ++i) put(thresholds, i, random.one_of({0.0, 0.25, 1e-42, HUGE_VAL, std::nan("")}));
  digest.add(cpu::count_below(c.params, c.mask_bits, thresholds));
  // Each byte of the key in turn, behind the lowest that was found.
  for (int64_t word = 0; word < 3; ++word)
    for (int64_t shift = word == 2 ? 56 : 24; shift >= 0; shift -= 8) {
      const Tensor found = cpu::key_histogram(c.histogram(seed % 2, word, shift, prefix));
      digest.add(found);
      const auto* counts = static_cast<const int32_t*>(found.const_data_ptr());
      auto* known = static_cast<int64_t*>(prefix.mutable_data_ptr());
      for (int64_t i = 0; i < layers; ++i) {
        const auto* byte = std::find_if(counts + 256 * i, counts + 256 * (i + 1), [](int32_t x) { return x != 0; });
        if (byte != counts + 256 * (i + 1)) known[3 * i + word] |= (byte - counts - 256 * i) << shift;
      }
    }
}

bool large(uint64_t seed) { return seed % 8 == 0; }

void set_limits(uint64_t seed) {
  dstee::test_limits() = {};
  if (seed % 3 == 0) dstee::test_limits() = {seed % 2 ? 1.0 : 0.3, seed % 5 < 2};
}

// Whether a step and an update leave packed momenta, and all else, as they leave momenta at the weights' places.
bool packed_is_same(uint64_t seed) {
  Case plain(seed, large(seed)), packed(seed, large(seed));
  if (plain.momenta.empty() || !plain.k_grow.empty()) return true;
  set_limits(seed);
  plain.clear_inactive_momenta();
  packed.momenta = packed.active_momenta();
  packed.packed_momenta = true;
  for (const Case* c : {&plain, &packed}) {
    if (!c->sgd.empty()) cpu::masked_sgd_(c->step());
    cpu::drop_grow_(c->update());
  }
  plain.momenta = plain.active_momenta();
  return plain.digest() == packed.digest();
}

uint64_t run_case(uint64_t seed) {
  const Case c(seed, large(seed));
  set_limits(seed);
  Digest digest;
  if (!c.sgd.empty() && (c.sgd[1] == 0 || !c.momenta.empty())) cpu::masked_sgd_(c.step());
  cpu::drop_grow_(c.update());
  add_counts(c, seed, digest);
  digest.add(cpu::count_active(c.mask_bits));
  digest.add(cpu::count_outside(c.params, c.mask_bits));
  if (!c.counts.empty()) digest.add(cpu::count_explored(c.counts, c.mask_bits));
  for (size_t i = 0; i < c.params.size(); ++i) {
    const std::vector<int64_t> shape{c.params[i].numel()};
    const Tensor mask = cpu::unpack_mask(c.mask_bits[i], shape);
    digest.add(mask);
    digest.add(cpu::pack_mask(mask));
    if (c.counts.empty()) continue;
    digest.add(cpu::encode_counts(c.counts[i], mask, c.round + 1));
    digest.add(cpu::decode_counts(c.counts[i], c.mask_bits[i], c.round + 1, shape));
  }
  cpu::global_keep_(c.keep(seed));
  Tensor noise({c.params[0].numel()}, ScalarType::Float, static_cast<int64_t>(seed % 2));
  cpu::hashed_noise_({noise}, {1, -2, 3, static_cast<int64_t>(seed)}, {});
  digest.add(noise);
  const uint64_t tensors = c.digest();
  digest.add(&tensors, sizeof tensors);
  return digest.value();
}

int check(uint64_t cases) {
  const char* const names[] = {"scalar", "avx2", "avx512"};
  std::string ran;
  Digest all;
  std::vector<uint64_t> expected;
  int faults = 0;
  for (const char* name : names) {
    if (!cpu::force_isa(name)) continue;
    ran += std::string(ran.empty() ? "" : ", ") + name;
    for (uint64_t seed = 0; seed < 4 * cases && faults < 10; ++seed) {
      const char* differs = LoopChecks(cpu::kScalarLoops, cpu::loops(), seed).run();
      if (*differs && ++faults) std::printf("%s: %s differs from scalar, seed %d\n", name, differs, static_cast<int>(seed));
    }
    for (uint64_t seed = 0; seed < cases && faults < 10; ++seed) {
      if (!packed_is_same(seed) && ++faults)
        std::printf("%s: packed momenta differ, update %d\n", name, static_cast<int>(seed));
      const uint64_t digest = run_case(seed);
      if (expected.size() <= seed) {
        expected.push_back(digest);
        all.add(&digest, sizeof digest);
      } else if (digest != expected[seed] && ++faults) {
        std::printf("%s: update %d differs from scalar\n", name, static_cast<int>(seed));
      }
    }
  }
  std::printf("%d updates on %s: %016llx%s\n", static_cast<int>(cases), ran.c_str(),
              static_cast<unsigned long long>(all.value()), faults ? ", FAILED" : "");
  return faults ? 1 : 0;
}

// A list one entry too short for the whole vectors that the kernel stores.
void write_beyond() {
  std::vector<uint32_t> key(64, 7), out(63);
  cpu::loops().copy_between(key.data(), key.size(), 7, 7, key.data(), out.data());
}

// Two threads step the same weights.
void race() {
  Case c(0, true);
  c.sgd = {0.1, 0, 0, 0, 0, 0, 0};
  for (const Tensor& bits : c.mask_bits) memset(bits.mutable_data_ptr(), 1, static_cast<size_t>(bits.numel() - 1));
  std::thread other([&] { cpu::masked_sgd_(c.step()); });
  cpu::masked_sgd_(c.step());
  other.join();
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "check";
  if (what == "check") return check(count > 2 ? std::stoull(words[2]) : 100);
  if (what == "write") write_beyond();
  if (what == "race") race();
  if (what == "undefined") std::printf("%d\n", dstee::flip_count<int>(-1, INT32_MAX - (count > 9)));  // overflows
  return 0;
}

// drop_grow_: one mask update of all layers, fused with the SGD step where asked for.
//
//   sample  a bracket around both thresholds of each layer
//   sweep   once over the weights: step, then list the candidates within the bracket (lists.cpp)
//   resolve the winners among the listed, or scan a layer whose lists do not hold them (scans.cpp)
//   commit  mask bits, counters, zeros
//
// Bytes per weight that must move: gradient 4, counter 2, mask 1/8, and the cache lines of w (and m) that hold an active
// weight; the commit touches the lines of the swapped weights again.
#include <atomic>

#include "../test_limits.h"
#include "drop_grow_debug.h"
#include "lists.h"
#include "parallel.h"

namespace dstee {
namespace {

std::atomic<int64_t> fallback_layers{0}, list_entries{0};

void run(const Update& u) {
  const StrictFloat strict;  // for what is scored outside the workers
  const auto count = static_cast<int64_t>(u.layers.size());
  std::vector<Bracket> brackets(u.layers.size());
  for_tickets(u.workers, count, [&](int, int64_t i) {
    if (u.k[i]) brackets[i] = sample_bracket(u, static_cast<int>(i));
  });
  const TestLimits limits = test_limits();
  Lists lists(u, brackets, limits.list_share);
  if (limits.tight_bounds)
    for (int64_t i = 0; i < count; ++i) {
      if (i % 2)
        brackets[i].low_score = kMaxRank;
      else
        brackets[i].high_drop = 0;
    }
  std::vector<char> resolved(u.layers.size());

  const auto pieces = static_cast<int64_t>(u.pieces.size());
  for_tickets(u.workers, pieces, [&](int worker, int64_t p) { lists.sweep(p, worker); });
  for_tickets(u.workers, count, [&](int, int64_t i) { resolved[i] = u.k[i] == 0 || lists.resolve(static_cast<int>(i)); });
  for_tickets(u.workers, pieces, [&](int, int64_t p) {
    const int layer = u.pieces[p].layer;
    if (u.k[layer] && resolved[layer]) lists.commit(p);
  });
  int64_t scanned = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!resolved[i]) {
      update_by_scans(u, static_cast<int>(i));
      ++scanned;
    }
  list_entries = lists.entries();
  fallback_layers = scanned;
}

}  // namespace

void drop_grow_(const UpdateArguments& a) {
  Update u;
  u.layers = read_update(DeviceType::CPU, a);
  const auto L = static_cast<int64_t>(u.layers.size());
  if (L == 0) return;
  if (a.bonus) {
    u.bonus = static_cast<const float*>(a.bonus->const_data_ptr());
    u.bonus_size = static_cast<uint32_t>(a.bonus->numel());
  }
  const int64_t round = a.round_tensor ? *static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : a.round;
  STD_TORCH_CHECK(round >= 0 && round <= kMaxRound, "dstee: round is not in 0..", kMaxRound);
  u.round = static_cast<int32_t>(round);
  u.regrow = a.regrow;
  u.reset_regrown = a.reset_regrown;
  u.sgd = !a.sgd.empty();
  u.rule = rule_of(a.sgd, false);
  if (a.lr) u.rule.lr = static_cast<float>(read_scalar(*a.lr));
  u.seeds.assign(a.grow_seeds.begin(), a.grow_seeds.end());
  u.pieces = cut_pieces(u.layers);
  u.workers = worker_count(total_weights(u.layers));

  u.nnz.resize(static_cast<size_t>(L));
  u.k.resize(static_cast<size_t>(L));
  for_tickets(u.workers, L, [&](int, int64_t i) { u.nnz[i] = loops().count_bits(u.layers[i].bits, (u.layers[i].n + 7) / 8); });
  const int64_t* k = a.k_tensor ? static_cast<const int64_t*>(a.k_tensor->const_data_ptr()) : a.k.data();
  for (int64_t i = 0; i < L; ++i) {
    STD_TORCH_CHECK(a.k_tensor || (k[i] >= 0 && k[i] <= u.nnz[i]), "dstee: k is larger than what is there");
    u.k[i] = clip_swaps(k[i], u.nnz[i], u.layers[i].n, a.regrow);
  }
  if (is_set(a.found_inf)) return;
  run(u);
}

UpdateStats last_update_stats() { return {fallback_layers, list_entries}; }

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("drop_grow_", TORCH_BOX(&drop_grow_entry<drop_grow_>)); }

}  // namespace dstee

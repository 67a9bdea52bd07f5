#include "radix_select.h"

#include "parallel.h"

namespace dstee::cpu {
namespace {

constexpr int kDigit = 11;
using Bins = std::array<int64_t, 1 << kDigit>;

}  // namespace

Selected radix_select(const std::vector<Layer>& layers, const Piece* pieces, size_t count, Order order, int64_t k,
                      int workers) {
  Selected selected;
  selected.ties.assign(count, 0);
  if (k == 0) return selected;
  const auto tickets = static_cast<int64_t>(count);
  workers = static_cast<int>(std::min<int64_t>(workers, tickets));
  std::vector<Bins> bins(static_cast<size_t>(workers));
  uint32_t low = 0;
  int64_t equal = 0;
  for (int end = 32; end > 0;) {
    const int top = end;
    end = std::max(0, end - kDigit);
    const auto high = static_cast<uint32_t>(low + ((uint64_t{1} << top) - 1));
    for (Bins& b : bins) b.fill(0);
    for_tickets(workers, tickets, [&](int worker, int64_t p) {
      Bins& mine = bins[static_cast<size_t>(worker)];
      for_active_keys(layers, pieces[p], order, low, high, [&](uint32_t key, int64_t) { ++mine[(key - low) >> end]; });
    });
    for (size_t w = 1; w < bins.size(); ++w)
      for (size_t b = 0; b < bins[0].size(); ++b) bins[0][b] += bins[w][b];
    uint32_t bin = (1u << (top - end)) - 1;
    for (; bins[0][bin] < k; --bin) k -= bins[0][bin];
    low += bin << end;
    equal = bins[0][bin];
  }
  selected.key = low;
  if (k == equal) {
    selected.ties.assign(count, INT64_MAX);
    return selected;
  }
  for_tickets(workers, tickets, [&](int, int64_t p) {
    int64_t here = 0;
    for_active_keys(layers, pieces[p], order, low, low, [&](uint32_t, int64_t) { ++here; });
    selected.ties[static_cast<size_t>(p)] = here;
  });
  for (int64_t& ties : selected.ties) {
    ties = std::min(ties, k);
    k -= ties;
  }
  return selected;
}

}  // namespace dstee::cpu

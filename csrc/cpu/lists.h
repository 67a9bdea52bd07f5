// The fast path: one sweep over the weights lists the few candidates, the winners are found among them.
#pragma once

#include <vector>

#include "update.h"
#include "workspace.h"

namespace dstee {

// What the sweep found in one piece; the arrays lie in the arena of the worker that swept it, in index order.
struct PieceLists {
  uint32_t *grow_score = nullptr, *grow_where = nullptr;                        // candidates that were inactive
  uint32_t *drop_rank = nullptr, *drop_where = nullptr, *drop_score = nullptr;  // active ones near zero
  size_t grow_count = 0, drop_count = 0;
  bool overflow = false;  // not listed: the arena was full
};

// Values among which a rank is sought.
struct Run {
  const uint32_t* values;
  size_t count;
};

class Lists {
 public:
  // Allocates everything the update needs, so that nothing can fail once the sweep has begun to write.
  // `share` of the room: 1 but for tests.
  Lists(const Update& u, const std::vector<Bracket>& brackets, double share);

  void sweep(int64_t piece, int worker);  // masked SGD where asked for, then the lists
  bool resolve(int layer);                // finds the winners; false: the lists do not hold them, scan the layer instead
  void commit(int64_t piece);             // of a resolved layer
  int64_t entries() const;

 private:
  struct Arena {
    uint32_t *grow_score, *grow_where, *drop_rank, *drop_where, *drop_score;
    size_t grow_left, drop_left;
  };
  // Growth winners: value above `value`, or equal to it with index up to `index`.
  struct GrowCut {
    uint32_t value = 0;
    int64_t index = 0;
  };

  void keep_dropped(int layer);
  void split_ties(int layer, uint32_t score);

  const Update& u_;
  const std::vector<Bracket>& brackets_;
  std::vector<PieceLists> pieces_;
  std::vector<int64_t> first_piece_;  // by layer, and one more
  std::vector<GrowCut> cuts_;
  std::vector<Run> runs_;  // scratch, two for each piece
  std::vector<Arena> arenas_;
  Workspace memory_;
};

}  // namespace dstee

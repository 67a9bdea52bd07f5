// Who does what next in drop_grow_: pieces are swept layer by layer, and a layer is committed as soon as its last piece is
// swept, while what it takes is still in some cache.
#pragma once

#include <mutex>
#include <thread>
#include <vector>

#include "lists.h"
#include "update.h"

namespace dstee::cpu {

struct Work {
  enum Kind { kNone, kSweep, kCommit } kind;
  int64_t piece;
};

class LayerOrder {
 public:
  LayerOrder(const Update& u, const Lists& lists)
      : first_piece_(lists.first_piece), pieces_(static_cast<int64_t>(u.pieces.size())) {
    for (size_t i = 0; i < u.layers.size(); ++i) left_.push_back(first_piece_[i + 1] - first_piece_[i]);
    ready_.reserve(u.layers.size());
    for (const int64_t left : left_) unselected_ += left > 0;
  }

  // What a worker does next; it waits for another one's selection rather than leave that one the whole commit.
  Work next() {
    for (;; std::this_thread::yield()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (commit_next_ == commit_end_ && first_ready_ < ready_.size()) {
        const auto layer = static_cast<size_t>(ready_[first_ready_++]);
        commit_next_ = first_piece_[layer];
        commit_end_ = first_piece_[layer + 1];
      }
      if (commit_next_ < commit_end_) return {Work::kCommit, commit_next_++};
      if (sweep_next_ < pieces_) return {Work::kSweep, sweep_next_++};
      if (unselected_ == 0) return {Work::kNone, 0};
    }
  }
  // True for the last piece of the layer: the caller selects, and says so with selected().
  bool swept(int layer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return --left_[static_cast<size_t>(layer)] == 0;
  }
  void selected(int layer, bool to_commit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (to_commit) ready_.push_back(layer);
    --unselected_;
  }

 private:
  std::mutex mutex_;
  const std::vector<int64_t>& first_piece_;
  const int64_t pieces_;
  std::vector<int64_t> left_;  // by layer: pieces that are not swept
  std::vector<int> ready_;     // layers to commit, in order
  size_t first_ready_ = 0;
  int64_t sweep_next_ = 0, commit_next_ = 0, commit_end_ = 0, unselected_ = 0;
};

}  // namespace dstee::cpu

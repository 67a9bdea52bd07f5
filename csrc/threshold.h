// The order in which a drop or a growth selects weights, and thresholds in it, for host and device.
#pragma once

#include "rules.h"

namespace dstee {

// Larger keys first, among equal ones smaller indices.
template <class Key, class Index>
struct Threshold {
  Key key;
  Index index;
};

// The weight comes before the threshold or is the one that it names.
template <class Key, class Index>
DSTEE_HD bool passes(const Threshold<Key, Index>& threshold, Key key, Index index) {
  return (key > threshold.key) | ((key == threshold.key) & (index <= threshold.index));  // without branches
}

}  // namespace dstee

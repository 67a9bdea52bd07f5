// Stand-in: work sharing over threads that start and end with each call, which a sanitizer understands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "tensor.h"

namespace torch::stable {

inline int threads = 2;

inline int64_t get_num_threads() { return threads; }

template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t, const Body& body) {
  std::vector<std::thread> started;
  for (int64_t i = begin + 1; i < end; ++i) started.emplace_back([&body, i] { body(i, i + 1); });
  if (begin < end) body(begin, begin + 1);
  for (std::thread& t : started) t.join();
}

inline Tensor empty(headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  return {std::vector<int64_t>(sizes.data, sizes.data + sizes.length), dtype};
}
inline Tensor empty(std::vector<int64_t> sizes, ScalarType dtype) { return {std::move(sizes), dtype}; }

}  // namespace torch::stable

// What arguments.cpp looks at in a tensor.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "arguments.h"

namespace dstee {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxDims = 16;

inline Dtype dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return kF32;
    case ScalarType::BFloat16:
      return kBF16;
    case ScalarType::Half:
      return kF16;
    default:
      STD_TORCH_CHECK(false, "dstee: ", what, " is not float32, bfloat16 or float16");
  }
  return kF32;
}

// Shape and strides without the dimensions of size 1, whose strides say nothing.
struct Layout {
  int64_t dims = 0, n = 1;
  std::array<int64_t, kMaxDims> size, stride;

  explicit Layout(const Tensor& t) {
    const auto sizes = t.sizes(), strides = t.strides();
    STD_TORCH_CHECK(static_cast<int64_t>(sizes.size()) <= kMaxDims, "dstee: more than 16 dimensions");
    for (size_t d = 0; d < sizes.size(); ++d) {
      n *= sizes[d];
      if (sizes[d] == 1) continue;
      size[dims] = sizes[d];
      stride[dims++] = strides[d];
    }
  }
  bool operator==(const Layout& o) const {
    return dims == o.dims && std::equal(size.begin(), size.begin() + dims, o.size.begin()) &&
           (n == 0 || std::equal(stride.begin(), stride.begin() + dims, o.stride.begin()));
  }
  bool is_dense() const {
    std::array<int, kMaxDims> order;
    for (int d = 0; d < dims; ++d) order[d] = d;
    std::sort(order.begin(), order.begin() + dims,
              [&](int a, int b) { return stride[a] != stride[b] ? stride[a] < stride[b] : size[a] < size[b]; });
    int64_t expected = 1;
    for (int d = 0; d < dims; ++d) {
      if (stride[order[d]] != expected) return false;
      expected *= size[order[d]];
    }
    return true;
  }
};

struct Span {
  const char *begin, *end;
  bool written;
};

// The checks, named as those in dstee/_checks.py.
class Checks {
 public:
  Checks(DeviceType device, const Tensors& params)
      : device_(device), index_(params.empty() ? 0 : params[0].get_device_index()), layers_(params.size()) {}

  void tensor_list(const Tensors& list, const char* name) const {
    STD_TORCH_CHECK(list.empty() || list.size() == layers_, "dstee: ", name, " has another length than params");
  }
  void like_param(const Tensor& t, const Layout& layout, const char* name) const {
    place(t, name);
    STD_TORCH_CHECK(Layout(t) == layout, "dstee: ", name, " has another shape or memory order than its parameter");
    check_memory(t, name);
  }
  void flat(const Tensor& t, ScalarType dtype, int64_t n, const char* name) const {
    place(t, name);
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.numel() == n && t.is_contiguous(), "dstee: ", name,
                    " has another dtype or size than its parameter needs");
    check_memory(t, name);
  }
  // For no_overlap and signals_apart.
  void note(const void* p, int64_t bytes, bool written) {
    if (bytes) spans_.push_back({static_cast<const char*>(p), static_cast<const char*>(p) + bytes, written});
  }
  // What is ranked in place of the weight or gradient: the weight or momentum of its own layer, or nothing that is written.
  void note_signal(const void* p, Dtype dtype, const Layer& l, bool packed_momenta) {
    if (l.n == 0 || ((p == l.w || (p == l.m && !packed_momenta)) && dtype == l.dtype)) return;
    const char* begin = static_cast<const char*>(p);
    signals_.push_back({begin, begin + l.n * element_size(dtype), false});
  }
  void no_overlap() {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < spans_.size(); ++i)
      STD_TORCH_CHECK(spans_[i - 1].end <= spans_[i].begin, "dstee: two arguments share storage");
  }
  void signals_apart() const {  // once no_overlap has sorted
    for (const Span& s : signals_) {
      auto other =
          std::upper_bound(spans_.begin(), spans_.end(), s.begin, [](const char* p, const Span& x) { return p < x.end; });
      for (; other != spans_.end() && other->begin < s.end; ++other)
        STD_TORCH_CHECK(!other->written, "dstee: drop_scores or grow_signal share storage with what is written");
    }
  }
  void scalar_tensor(const std::optional<Tensor>& t, const char* name) const {
    if (!t) return;
    const ScalarType dtype = t->scalar_type();
    STD_TORCH_CHECK(t->device().type() == device_ && t->numel() == 1, "dstee: ", name,
                    " is not one element where the kernels run");
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
        "dstee: ", name, " is not float32, float64, bfloat16 or float16");
    check_memory(*t, name);
  }
  void rule(const std::vector<double>& sgd, const Tensors& grads, const Tensors& momenta) const {
    STD_TORCH_CHECK(sgd.size() == 7, "dstee: sgd does not have the seven numbers of a step");
    STD_TORCH_CHECK(layers_ == 0 || !grads.empty(), "dstee: the step needs grads");
    STD_TORCH_CHECK(layers_ == 0 || sgd[1] == 0 || !momenta.empty(), "dstee: momentum needs momenta");
  }
  void round(int64_t round, const std::optional<Tensor>& tensor) const {
    STD_TORCH_CHECK(tensor || (round >= 0 && round <= kMaxRound), "dstee: round is not in 0..", kMaxRound);
    one_int64(tensor, "round");
  }
  void one_int64(const std::optional<Tensor>& t, const char* name) const {
    if (!t) return;
    STD_TORCH_CHECK(t->device().type() == device_ && t->numel() == 1 && t->scalar_type() == ScalarType::Long, "dstee: ", name,
                    " is not one int64 where the kernels run");
    check_memory(*t, name);
  }
  void per_layer(const Tensor& t, ScalarType dtype, int64_t row, const char* name) const {
    STD_TORCH_CHECK(t.device().type() == device_ && t.scalar_type() == dtype && t.is_contiguous() &&
                        t.numel() == row * static_cast<int64_t>(layers_),
                    "dstee: ", name, " has another dtype or size than one entry per layer");
    check_memory(t, name);
  }
  // A number for each layer in one of two forms.
  void numbers(const std::vector<int64_t>& list, const std::optional<Tensor>& tensor, const char* name) const {
    if (tensor) return per_layer(*tensor, ScalarType::Long, 1, name);
    STD_TORCH_CHECK(list.size() == layers_, "dstee: ", name, " does not have one int64 per layer");
  }
  void seeds(const std::vector<int64_t>& seeds, size_t each) const {
    STD_TORCH_CHECK(seeds.empty() || seeds.size() == each * layers_, "dstee: the seeds have another length");
  }
  void where(const std::vector<int64_t>& where) const {
    STD_TORCH_CHECK(where.empty() || where.size() == 3 * layers_, "dstee: where does not have three numbers per layer");
    for (size_t i = 0; i < where.size(); i += 3)
      STD_TORCH_CHECK(where[i] >= 0 && where[i + 1] >= 1 && where[i + 2] >= where[i + 1],
                      "dstee: where is not base >= 0 and 1 <= run <= pitch");
  }
  void bonus(const std::optional<Tensor>& bonus, const std::optional<Tensor>& scale, int64_t round) const {
    STD_TORCH_CHECK(bonus || !scale, "dstee: bonus_scale needs a bonus");
    STD_TORCH_CHECK(!bonus || (bonus->device().type() == device_ &&
                               bonus->scalar_type() == (scale ? ScalarType::Double : ScalarType::Float) && bonus->dim() == 1 &&
                               bonus->is_contiguous() && bonus->numel() >= round + 2),
                    "dstee: bonus is not a table of round + 2 entries, float32 or, with bonus_scale, float64");
    if (bonus) check_memory(*bonus, "bonus");
    if (scale) per_layer(*scale, ScalarType::Float, 1, "bonus_scale");
  }

 private:
  void place(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.device().type() == device_ && t.layout() == torch::headeronly::Layout::Strided, "dstee: ", name,
                    " is not a strided tensor where the kernels run");
    STD_TORCH_CHECK(t.get_device_index() == index_, "dstee: ", name, " is on another device than the first parameter");
  }
  DeviceType device_;
  int32_t index_;
  size_t layers_;
  std::vector<Span> spans_, signals_;
};

}  // namespace dstee

#include "arguments.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace dstee {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxDims = 16;

Dtype dtype_of(const Tensor& t, const char* what) {
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
  bool dense() const {
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

class Reader {
 public:
  Reader(DeviceType device, const Tensors& params)
      : device_(device), index_(params.empty() ? 0 : params[0].get_device_index()), layers_(params.size()) {}

  void length(const Tensors& list, const char* name) const {
    STD_TORCH_CHECK(list.empty() || list.size() == layers_, "dstee: ", name, " has another length than params");
  }
  // A tensor laid out like the parameter.
  const void* like(const Tensor& t, const Layout& layout, const char* name) const {
    check_place(t, name);
    STD_TORCH_CHECK(Layout(t) == layout, "dstee: ", name, " has another shape or memory order than its parameter");
    STD_TORCH_CHECK(t.const_data_ptr() || layout.n == 0, "dstee: the storage of ", name, " has been freed");
    return t.const_data_ptr();
  }
  void* flat(const Tensor& t, ScalarType dtype, int64_t n, const char* name) const {
    check_place(t, name);
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.numel() == n && t.is_contiguous(), "dstee: ", name,
                    " has another dtype or size than its parameter needs");
    STD_TORCH_CHECK(t.const_data_ptr() || n == 0, "dstee: the storage of ", name, " has been freed");
    return t.mutable_data_ptr();
  }
  void note(const void* p, int64_t bytes, bool written) {
    if (bytes) spans_.push_back({static_cast<const char*>(p), static_cast<const char*>(p) + bytes, written});
  }
  // What is ranked in place of the weight or gradient: the weight or momentum of its own layer, or nothing that is written.
  void note_signal(const void* p, Dtype dtype, const Layer& l) {
    if (l.n == 0 || ((p == l.w || p == l.m) && dtype == l.dtype)) return;
    const char* begin = static_cast<const char*>(p);
    signals_.push_back({begin, begin + l.n * element_size(dtype), false});
  }
  void check_overlap() {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < spans_.size(); ++i)
      STD_TORCH_CHECK(spans_[i - 1].end <= spans_[i].begin, "dstee: two arguments share storage");
    for (const Span& s : signals_) {
      auto other =
          std::upper_bound(spans_.begin(), spans_.end(), s.begin, [](const char* p, const Span& x) { return p < x.end; });
      for (; other != spans_.end() && other->begin < s.end; ++other)
        STD_TORCH_CHECK(!other->written, "dstee: drop_scores or grow_signal share storage with what is written");
    }
  }

 private:
  void check_place(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.device().type() == device_ && t.layout() == torch::headeronly::Layout::Strided, "dstee: ", name,
                    " is not a strided tensor where the kernels run");
    STD_TORCH_CHECK(t.get_device_index() == index_, "dstee: ", name, " is on another device than the first parameter");
  }
  DeviceType device_;
  int32_t index_;
  size_t layers_;
  std::vector<Span> spans_, signals_;
};

std::vector<Layer> read_layers(DeviceType device, const Tensors& params, const Tensors& grads, const Tensors& momenta,
                               const Tensors& mask_bits, const Tensors& counts, const Tensors& drop_scores,
                               const Tensors& grow_signal) {
  Reader read(device, params);
  STD_TORCH_CHECK(mask_bits.size() == params.size(), "dstee: mask_bits has another length than params");
  read.length(grads, "grads");
  read.length(momenta, "momenta");
  read.length(counts, "counts");
  read.length(drop_scores, "drop_scores");
  read.length(grow_signal, "grow_signal");

  std::vector<Layer> layers(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    Layer& l = layers[i];
    const Layout layout(params[i]);
    l.n = layout.n;
    l.dtype = dtype_of(params[i], "params");
    const int64_t bytes = l.n * element_size(l.dtype);
    STD_TORCH_CHECK(layout.n == 0 || layout.dense(), "dstee: params are not dense, non-overlapping storage");
    l.w = const_cast<void*>(read.like(params[i], layout, "params"));
    read.note(l.w, bytes, true);
    if (!grads.empty()) {
      STD_TORCH_CHECK(dtype_of(grads[i], "grads") == l.dtype, "dstee: grads have another dtype than params");
      l.g = read.like(grads[i], layout, "grads");
      read.note(l.g, bytes, false);
    }
    if (!momenta.empty()) {
      STD_TORCH_CHECK(dtype_of(momenta[i], "momenta") == l.dtype, "dstee: momenta have another dtype than params");
      l.m = const_cast<void*>(read.like(momenta[i], layout, "momenta"));
      read.note(l.m, bytes, true);
    }
    l.bits = static_cast<uint8_t*>(read.flat(mask_bits[i], ScalarType::Byte, (l.n + 7) / 8, "mask_bits"));
    read.note(l.bits, (l.n + 7) / 8, true);
    STD_TORCH_CHECK(device != DeviceType::CPU || l.n % 8 == 0 || l.bits[l.n / 8] >> (l.n % 8) == 0,
                    "dstee: mask_bits have bits set behind the last weight");
    if (!counts.empty()) {
      l.counts = static_cast<int16_t*>(read.flat(counts[i], ScalarType::Short, l.n, "counts"));
      read.note(l.counts, 2 * l.n, true);
    }
    l.drop = drop_scores.empty() ? l.w : read.like(drop_scores[i], layout, "drop_scores");
    l.drop_dtype = drop_scores.empty() ? l.dtype : dtype_of(drop_scores[i], "drop_scores");
    l.grow = grow_signal.empty() ? l.g : read.like(grow_signal[i], layout, "grow_signal");
    l.grow_dtype = grow_signal.empty() ? l.dtype : dtype_of(grow_signal[i], "grow_signal");
    STD_TORCH_CHECK((l.drop_dtype == kF32 || l.drop_dtype == l.dtype) && (l.grow_dtype == kF32 || l.grow_dtype == l.dtype),
                    "dstee: drop_scores and grow_signal are float32 or have their parameter's dtype");
    if (!drop_scores.empty()) read.note_signal(l.drop, l.drop_dtype, l);
    if (!grow_signal.empty()) read.note_signal(l.grow, l.grow_dtype, l);
  }
  read.check_overlap();
  return layers;
}

void check_rule(const std::vector<double>& sgd, const Tensors& params, const Tensors& grads, const Tensors& momenta) {
  STD_TORCH_CHECK(sgd.size() == 7, "dstee: sgd does not have the seven numbers of a step");
  STD_TORCH_CHECK(params.empty() || !grads.empty(), "dstee: the step needs grads");
  STD_TORCH_CHECK(params.empty() || sgd[1] == 0 || !momenta.empty(), "dstee: momentum needs momenta");
}

}  // namespace

std::vector<Layer> read_step(DeviceType device, const StepArguments& a) {
  auto layers = read_layers(device, a.params, a.grads, a.momenta, a.mask_bits, {}, {}, {});
  check_rule(a.sgd, a.params, a.grads, a.momenta);
  return layers;
}

std::vector<Layer> read_update(DeviceType device, const UpdateArguments& a) {
  auto layers = read_layers(device, a.params, a.grads, a.momenta, a.mask_bits, a.counts, a.drop_scores, a.grow_signal);
  const size_t L = layers.size();
  if (L == 0) return layers;
  STD_TORCH_CHECK(a.round_tensor ? a.round_tensor->device().type() == device && a.round_tensor->numel() == 1 &&
                                       a.round_tensor->scalar_type() == ScalarType::Long
                                 : a.round >= 0 && a.round <= kMaxRound,
                  "dstee: round is not in 0..", kMaxRound, " or not one int64");
  STD_TORCH_CHECK(a.k_tensor ? a.k_tensor->device().type() == device && a.k_tensor->numel() == static_cast<int64_t>(L) &&
                                   a.k_tensor->is_contiguous() && a.k_tensor->scalar_type() == ScalarType::Long
                             : a.k.size() == L,
                  "dstee: k does not have one int64 per layer");
  STD_TORCH_CHECK(a.grow_seeds.empty() || a.grow_seeds.size() == L, "dstee: grow_seeds has another length");
  STD_TORCH_CHECK(!a.grow_seeds.empty() || !a.grow_signal.empty() || !a.grads.empty(), "dstee: no growth signal");
  if (!a.sgd.empty()) check_rule(a.sgd, a.params, a.grads, a.momenta);
  STD_TORCH_CHECK(
      !a.bonus || (a.bonus->device().type() == device && a.bonus->scalar_type() == ScalarType::Float && a.bonus->dim() == 1 &&
                   a.bonus->is_contiguous() && a.bonus->numel() >= a.round + 2 && !a.counts.empty()),
      "dstee: bonus is not a float32 table of round + 2 entries, or there are no counts");
  return layers;
}

SgdRule rule_of(const std::vector<double>& sgd, bool scaled) {
  SgdRule r{};
  if (sgd.empty()) return r;
  r.lr = static_cast<float>(sgd[0]);
  r.grad_scale = 1.0f;
  r.momentum = static_cast<float>(sgd[1]);
  r.damped = static_cast<float>(1.0 - sgd[2]);
  r.weight_decay = static_cast<float>(sgd[3]);
  r.has_momentum = sgd[1] != 0;
  r.has_decay = sgd[3] != 0;
  r.scaled = scaled;
  r.nesterov = sgd[4] != 0;
  r.maximize = sgd[5] != 0;
  r.first_step = sgd[6] != 0;
  return r;
}

}  // namespace dstee

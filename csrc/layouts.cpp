#include "layouts.h"

// The protocol is plain C, the same in all versions of torch that have it; torch keeps the header from users of its stable
// interface only because it is no part of that.
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>

#include <cstring>

namespace py = pybind11;

namespace dstee {
namespace {

// The types that are known to have memory of their own, and the functions that look into them; null where torch has others.
struct Exchange {
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  const DLPackExchangeAPI* api = nullptr;

  Exchange() {
    const py::module_ torch = py::module_::import("torch");
    tensor = reinterpret_cast<PyTypeObject*>(torch.attr("Tensor").ptr());
    parameter = reinterpret_cast<PyTypeObject*>(torch.attr("nn").attr("Parameter").ptr());
    const py::object capsule = py::getattr(torch.attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
    const auto* found = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (found->header.version.major == DLPACK_MAJOR_VERSION) api = found;
  }
};

// What is compared of one tensor, byte by byte.
struct Head {
  int64_t address, device, dtype;
};
constexpr int kMostDims = 16;

py::object layouts(const Exchange& exchange, const py::list& tensors, bool addresses) {
  if (!exchange.api || !exchange.api->dltensor_from_py_object_no_sync) return py::none();
  py::list found(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyObject* const one = PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i));
    if (Py_TYPE(one) != exchange.tensor && Py_TYPE(one) != exchange.parameter) return py::none();
    DLTensor t;
    if (exchange.api->dltensor_from_py_object_no_sync(one, &t) != 0) {
      PyErr_Clear();  // no memory, or none that can be described
      return py::none();
    }
    if (t.ndim > kMostDims) return py::none();
    char out[sizeof(Head) + 2 * sizeof(int64_t) * kMostDims];
    const int64_t address = reinterpret_cast<int64_t>(t.data) + static_cast<int64_t>(t.byte_offset);
    const Head head{addresses ? address : 0, (int64_t{t.device.device_type} << 32) + t.device.device_id,
                    (int64_t{t.dtype.code} << 32) + (t.dtype.bits << 16) + t.dtype.lanes};
    const size_t row = sizeof(int64_t) * static_cast<size_t>(t.ndim);
    memcpy(out, &head, sizeof head);
    if (row) {
      memcpy(out + sizeof head, t.shape, row);
      memcpy(out + sizeof head + row, t.strides, row);
    }
    found[i] = py::bytes(out, sizeof head + 2 * row);
  }
  return found;
}

}  // namespace

void bind_layouts(py::module_& m) {
  m.def(
      "layouts",
      [exchange = Exchange()](const py::list& tensors, bool addresses) { return layouts(exchange, tensors, addresses); },
      py::arg("tensors"), py::arg("addresses"),
      "For each tensor its address (if asked for), device, dtype, shape and strides, as bytes to compare. None where one of "
      "them is no torch.Tensor or Parameter with memory of its own, or torch does not tell.");
}

}  // namespace dstee

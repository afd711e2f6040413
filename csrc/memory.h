// Memory for results and scratch space; where there is none, the words that the public functions know it by.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <iomanip>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

namespace mgassign {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What the public functions' call() turns into torch's own exception for the device.
class OutOfMemory : public std::runtime_error {
 public:
  explicit OutOfMemory(double bytes) : std::runtime_error(text(bytes)) {}

 private:
  static std::string text(double bytes) {
    std::ostringstream message;
    message << "mgassign: out of memory, cannot allocate " << std::fixed << std::setprecision(0) << bytes << " bytes";
    return message.str();
  }
};

// Room for `count` values in host memory, not initialised.
template <typename Value>
std::unique_ptr<Value[]> new_values(int64_t count) {
  try {
    return std::unique_ptr<Value[]>(new Value[count]);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(static_cast<double>(count) * sizeof(Value));
  }
}

// A contiguous tensor of one or two dimensions beside another, not initialised. Through the C interface
// directly: new_empty goes round by the dispatcher, 2 microseconds for each of five results.
inline Tensor new_tensor(const Tensor& beside, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  const int64_t strides[] = {sizes.size() == 2 ? *(sizes.begin() + 1) : 1, 1};
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                               dtype == ScalarType::Long ? aoti_torch_dtype_int64() : aoti_torch_dtype_float32(),
                               device_type, beside.get_device_index(), &handle);
  if (error != AOTI_TORCH_SUCCESS) {
    double bytes = dtype == ScalarType::Long ? 8 : 4;
    for (const int64_t size : sizes) bytes *= static_cast<double>(size);
    throw OutOfMemory(bytes);
  }
  return Tensor(handle);
}

// The results of Mutual Guidance on points or anchors: cls, loc and original; how many points each object may have; the
// overlap of each point's prediction with its object.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> new_guidance(const Tensor& beside, int64_t num_images,
                                                                       int64_t num_points, int64_t num_objects) {
  const auto new_owners = [&] { return new_tensor(beside, {num_images, num_points}, ScalarType::Long); };
  return {new_owners(), new_owners(), new_owners(), new_tensor(beside, {num_objects}, ScalarType::Long),
          new_tensor(beside, {num_images, num_points}, ScalarType::Float)};
}

}  // namespace mgassign

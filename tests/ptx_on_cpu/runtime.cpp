// The CUDA runtime, as far as nvcc's host code needs one, and what Python calls.
#include <cxxabi.h>

#include <cstdlib>
#include <stdexcept>
#include <unordered_map>

#include "engine.h"
#include "queue.h"

namespace ptx_on_cpu {

namespace {

// What nvcc's host code tells the CUDA runtime: which function of the host stands for which kernel.
std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> names;
  return names;
}
std::unordered_map<std::string, Kernel>& kernels() {
  static std::unordered_map<std::string, Kernel> kernels;
  return kernels;
}

// assign::cuda::(anonymous namespace)::select_kernel(Selection) -> select_kernel
std::string plain_name(const std::string& mangled) {
  int status = 0;
  char* const demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = demangled ? demangled : mangled;
  std::free(demangled);
  const size_t at = name.find("_kernel");
  if (at == std::string::npos) return name;
  const size_t begin = name.rfind("::", at);
  const size_t end = name[at + 7] == '<' ? name.rfind('>', name.rfind('(')) + 1 : at + 7;
  return name.substr(begin == std::string::npos ? 0 : begin + 2, end - (begin == std::string::npos ? 0 : begin + 2));
}

}  // namespace

Registration::Registration(const char* mangled_name, const Kernel& kernel) { kernels()[mangled_name] = kernel; }

void launch(const void* function, dim3 blocks, unsigned threads, const void* task, size_t task_bytes) {
  const auto name = names().find(function);
  const auto found = name == names().end() ? kernels().end() : kernels().find(name->second);
  if (found == kernels().end()) throw std::runtime_error("PTX: a launch of an unknown kernel");
  const std::string plain = plain_name(found->first);
  const auto expect = [&](bool condition, const std::string& what) {
    if (!condition) throw std::runtime_error("PTX of " + plain + ": " + what);
  };
  expect(task_bytes == found->second.parameter_bytes, "host and device disagree about the parameter's size");
  expect(threads > 0 && threads <= found->second.most_threads,
         "more threads in a block than it was compiled for, or none");
  expect(blocks.x > 0 && blocks.y > 0 && blocks.z > 0 && blocks.x < 1u << 31 && blocks.y < 65536 && blocks.z < 65536,
         "a grid that no GPU takes");
  machine.launch(plain, found->second, {blocks.x, blocks.y, blocks.z}, threads, static_cast<const char*>(task));
}

}  // namespace ptx_on_cpu

extern "C" {

[[gnu::visibility("default")]] void ptx_on_cpu_schedule(uint64_t seed, unsigned blocks_at_once) {
  ptx_on_cpu::machine.settings = {seed, blocks_at_once};
}

// Since the last call: for each kernel a line of name, launches, warps, instructions, then for each line of its source
// a line of name, place, instructions.
[[gnu::visibility("default")]] const char* ptx_on_cpu_counts() {
  static std::string text;
  text.clear();
  for (const auto& [name, c] : ptx_on_cpu::machine.counts) {
    text += name + "\t" + std::to_string(c.launches) + "\t" + std::to_string(c.warps) + "\t" +
            std::to_string(c.instructions) + "\n";
    for (const auto& [place, instructions] : c.by_line)
      text += name + "\t" + place + "\t" + std::to_string(instructions) + "\n";
  }
  ptx_on_cpu::machine.counts.clear();
  return text.c_str();
}

void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  ptx_on_cpu::names()[host] = device;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }
}

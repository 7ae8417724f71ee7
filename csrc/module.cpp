// The Python module ptgm_fast._C: every op's file binds its functions to it (PTGM_BIND). Tensors are passed as addresses,
// sizes and dtype codes; the Python side (kernels/<op>/cpu_impl.py) checks them, allocates the outputs and keeps the
// tensors alive.
#include <string>

#include "common.h"

namespace ptgm {

namespace {

Isa widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};
Isa current = widest();

void use_isa(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name != kNames[i]) continue;
    if (i > static_cast<int>(widest()))
      throw std::invalid_argument("this processor has no " + name + "; its widest is " + kNames[static_cast<int>(widest())]);
    current = static_cast<Isa>(i);
    return;
  }
  throw std::invalid_argument("unknown instruction set " + name + "; accepted: portable, avx2, avx512");
}

}  // namespace

Isa isa() { return current; }

std::vector<Binder>& binders() {
  static std::vector<Binder> all;
  return all;
}

}  // namespace ptgm

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ implementations of the fused ops for CPU tensors.";
  module.def("isa", [] { return std::string(ptgm::kNames[static_cast<int>(ptgm::isa())]); },
             "The instruction set that the kernels use.");
  module.def("use_isa", &ptgm::use_isa, "Use `portable`, `avx2` or `avx512`; raises if the processor lacks it.");
  for (ptgm::Binder bind : ptgm::binders()) bind(module);
}

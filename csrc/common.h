// Shared by the C++ of all ops: element types, run-time choice of the instruction set, thread counts, an exponential.
//
// A kernel's body is a template marked INLINE. Thin wrappers call it, marked TARGET_AVX512 or TARGET_AVX2 or unmarked, so
// that the compiler emits one copy per instruction set, and `isa()` picks one at run time. OpenMP regions must stay outside
// these wrappers: the compiler does not carry their target into the region's body.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#define INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#if defined(__clang__)
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")))
#endif
#else
#define TARGET_AVX2
#define TARGET_AVX512
#endif

// Goes at the end of an op's file: PTGM_BIND(module) { module.def("name", &function); }. There is no central list of ops.
#define PTGM_BIND(module)                                                          \
  static void bind(pybind11::module_& module);                                     \
  [[maybe_unused]] static const bool bound = (binders().push_back(&bind), true);   \
  static void bind(pybind11::module_& module)

namespace ptgm {

using Binder = void (*)(pybind11::module_&);
std::vector<Binder>& binders();

// In order of increasing width. `isa()` is the widest that this processor supports, unless `use_isa` lowered it (for tests).
enum class Isa : int { kPortable, kAvx2, kAvx512 };
Isa isa();
inline bool has_avx2() { return isa() >= Isa::kAvx2; }
inline bool has_avx512() { return isa() >= Isa::kAvx512; }

// The bits of a bfloat16 or a float16. Conversions are branch-free integer arithmetic, so that loops over them vectorize.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Must match DTYPE_CODES in kernels/dispatch.py.
enum DType : int { kFloat32, kBFloat16, kFloat16, kUInt8 };

INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

INLINE float to_float(float value) { return value; }
INLINE float to_float(uint8_t value) { return static_cast<float>(value); }
INLINE float to_float(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

INLINE float to_float(f16 value) {
  // After Marat Dukhan's FP16 library: shift exponent and mantissa into place and scale; subnormals take a subtraction.
  const uint32_t word = static_cast<uint32_t>(value.bits) << 16, sign = word & 0x80000000u, twice = word + word;
  const float normal = float_of((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = float_of((twice >> 17) | (126u << 23)) - 0.5f;
  return float_of(sign | (twice < (1u << 27) ? bits_of(subnormal) : bits_of(normal)));
}

template <class T>
INLINE T from_float(float value);

template <>
INLINE float from_float<float>(float value) {
  return value;
}

// Rounds to nearest even; NaN stays a (quiet) NaN.
template <>
INLINE bf16 from_float<bf16>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {static_cast<uint16_t>(is_nan ? 0x7FC0u : rounded)};
}

template <>
INLINE f16 from_float<f16>(float value) {
  // The scaling makes values too large for float16 overflow to infinity; adding `bias` rounds to nearest even.
  const uint32_t bits = bits_of(value), sign = bits & 0x80000000u, twice = bits + bits;
  const float scaled = (float_of(bits & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t exponent = twice & 0xFF000000u, bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t sum = bits_of(float_of((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t rounded = ((sum >> 13) & 0x00007C00u) + (sum & 0x00000FFFu);
  return {static_cast<uint16_t>((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : rounded))};
}

// out[k] = in[k] rounded to T.
template <class T>
INLINE void convert_row(T* __restrict out, const float* __restrict in, int64_t num) {
  for (int64_t k = 0; k < num; ++k) out[k] = from_float<T>(in[k]);
}

// e^x to 1.2 ulp (the polynomial of Cephes' expf); 0 below -87.33, where e^x leaves float32's normal range; infinity above
// 88.72; NaN stays NaN. Branch-free, so that loops vectorize.
INLINE float fast_exp(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  float t = x < kLowest ? kLowest : x;
  t = t > kHighest ? kHighest : t;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the sum's low bits.
  const float shifted = t * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n as 2^(n-1) * 2, since n may be 128.
  const float power = float_of((bits_of(shifted) << 23) + (126u << 23));
  const float y = p * power * 2.0f;
  return x < kLowest ? 0.0f : (x > kHighest ? float_of(0x7F800000u) : y);
}

// The number of threads worth using for `items` of about `cost` nanoseconds each: at most `threads`, 1 if there is little work.
inline int threads_for(int threads, int64_t items, int64_t cost) {
  constexpr int64_t kWorthOne = 20000;
  const int64_t useful = std::min(items, items * cost / kWorthOne);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Calls f(T{}) with the floating-point type of that code.
template <class F>
void with_float_type(int dtype, F&& f) {
  switch (static_cast<DType>(dtype)) {
    case kFloat32:
      return f(float{});
    case kBFloat16:
      return f(bf16{});
    case kFloat16:
      return f(f16{});
    default:
      throw std::invalid_argument("no floating type has the code " + std::to_string(dtype));
  }
}

}  // namespace ptgm

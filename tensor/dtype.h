// Element types. f64 and f32 are computed in directly; bf16 and f16 are storage with f32 arithmetic;
// the fp8 and packed fp4 types are storage only (formats: ops/quantize).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <ostream>

#include "tensor/error.h"

namespace rivulet {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u8, f8_e4m3, f8_e5m2, f4_e2m1x2 };

// bfloat16: the upper half of an f32, rounded to nearest even; NaN stays NaN.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? uint16_t((u >> 16) | 0x40u) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

// IEEE half; the compiler's _Float16 does the rounding.
struct f16 {
  _Float16 value = 0;
  f16() = default;
  explicit f16(float x) : value(static_cast<_Float16>(x)) {}
  operator float() const { return static_cast<float>(value); }
};
static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

// Bytes of one element (of one packed pair for f4_e2m1x2).
constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    default:
      return 1;
  }
}

constexpr const char* name_of(DType t) {
  constexpr const char* kNames[] = {"f64", "f32", "bf16",    "f16",     "i64",
                                    "i32", "u8",  "f8_e4m3", "f8_e5m2", "f4_e2m1x2"};
  return kNames[static_cast<int>(t)];
}

constexpr bool is_floating(DType t) { return t <= DType::f16; }
constexpr bool is_half(DType t) { return t == DType::bf16 || t == DType::f16; }
// The type that sums and statistics of `t` are kept in.
constexpr DType accumulate_dtype(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

inline std::ostream& operator<<(std::ostream& os, DType t) { return os << name_of(t); }

template <class T>
struct dtype_of;
// clang-format off
template <> struct dtype_of<double>  { static constexpr DType value = DType::f64; };
template <> struct dtype_of<float>   { static constexpr DType value = DType::f32; };
template <> struct dtype_of<bf16>    { static constexpr DType value = DType::bf16; };
template <> struct dtype_of<f16>     { static constexpr DType value = DType::f16; };
template <> struct dtype_of<int64_t> { static constexpr DType value = DType::i64; };
template <> struct dtype_of<int32_t> { static constexpr DType value = DType::i32; };
template <> struct dtype_of<uint8_t> { static constexpr DType value = DType::u8; };
// clang-format on

// Calls f.template operator()<T>() with the C++ type of `t`: float or double.
template <class F>
decltype(auto) dispatch_real(DType t, const char* who, F&& f) {
  if (t == DType::f32) return f.template operator()<float>();
  if (t == DType::f64) return f.template operator()<double>();
  fail(who, ": needs f32 or f64, got ", t);
}

// The same over the four floating types.
template <class F>
decltype(auto) dispatch_floating(DType t, const char* who, F&& f) {
  if (t == DType::bf16) return f.template operator()<bf16>();
  if (t == DType::f16) return f.template operator()<f16>();
  return dispatch_real(t, who, f);
}

// The same over every type that has arithmetic (all but the storage-only ones).
template <class F>
decltype(auto) dispatch_any(DType t, const char* who, F&& f) {
  switch (t) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f16:
      return f.template operator()<f16>();
    case DType::i64:
      return f.template operator()<int64_t>();
    case DType::i32:
      return f.template operator()<int32_t>();
    case DType::u8:
      return f.template operator()<uint8_t>();
    default:
      fail(who, ": ", t, " is storage only");
  }
}

}  // namespace rivulet

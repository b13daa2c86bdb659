#include "tensor/tensor.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tensor/parallel.h"
#include "tensor/random.h"
#include "tests/op_fixtures.h"

using namespace rivulet;
using Values = std::vector<double>;

namespace {

bool names(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* p : parts)
    if (text.find(p) == std::string::npos) return false;
  return true;
}

// 0, 1, 2, ... in the given shape.
Tensor counted(const Shape& shape, DType dtype = DType::f32) {
  return arange(shape.numel(), dtype).reshape(shape);
}

// The element at `index`, found from the strides alone.
double at(const Tensor& t, const Shape& index) {
  int64_t offset = 0;
  for (int i = 0; i < t.dims(); ++i) offset += index[i] * t.strides()[i];
  return double(t.data<float>()[offset]);
}

const DType kAll[] = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};

}  // namespace

TEST_CASE("a new tensor is dense, aligned and has the shape asked for") {
  const Tensor t({2, 3, 4}, DType::f64);
  CHECK(t.defined());
  CHECK(t.shape() == Shape{2, 3, 4});
  CHECK(t.strides() == Shape{12, 4, 1});
  CHECK(t.numel() == 24);
  CHECK(t.bytes() == 192);
  CHECK(t.is_contiguous());
  CHECK(t.dim(-1) == 4);
  CHECK(t.dim(0) == 2);
  CHECK(reinterpret_cast<uintptr_t>(t.raw()) % 64 == 0);
  CHECK_FALSE(Tensor().defined());
  CHECK(Tensor(Shape{}).numel() == 1);
  CHECK(Tensor({3, 0, 2}).numel() == 0);
  CHECK(Tensor({3, 0, 2}).to_vector().empty());
}

TEST_CASE("factories") {
  for (DType t : kAll) {
    CAPTURE(t);
    CHECK(zeros({2, 2}, t).to_vector() == Values{0, 0, 0, 0});
    CHECK(ones({3}, t).to_vector() == Values{1, 1, 1});
    CHECK(full({2}, 7, t).to_vector() == Values{7, 7});
    CHECK(arange(4, t).to_vector() == Values{0, 1, 2, 3});
    CHECK(Tensor::of({5, 6}, {2, 1}, t).to_vector() == Values{5, 6});
    CHECK(empty_like(zeros({2, 3}, t).transpose(0, 1)).strides() == Shape{2, 1});
    CHECK(zeros_like(ones({2}, t)).to_vector() == Values{0, 0});
    CHECK(Tensor::of({5}, {1}, t).item() == 5);
  }
}

TEST_CASE("eight dims work, nine are refused") {
  const Tensor t = counted({2, 1, 2, 1, 2, 1, 2, 2});
  CHECK(t.permute({7, 6, 5, 4, 3, 2, 1, 0}).contiguous().to_vector()[1] == 16);
  CHECK(names(error_of([&] { t.unsqueeze(0); }), {"8 dims"}));
  CHECK(names(error_of([] { Tensor({1, 1, 1, 1, 1, 1, 1, 1, 1}); }), {"9 dims"}));
}

TEST_CASE("views share the data and place every element where the maths says") {
  const Tensor t = counted({3, 4, 5});
  const Tensor p = t.permute({2, 0, 1}), s = t.slice(1, 1, 4, 2), c = t.select(-1, -1);
  CHECK(p.shape() == Shape{5, 3, 4});
  CHECK(s.shape() == Shape{3, 2, 5});
  CHECK(c.shape() == Shape{3, 4});
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 4; ++j) {
      CHECK(at(c, {i, j}) == double(20 * i + 5 * j + 4));
      for (int64_t k = 0; k < 5; ++k) {
        CHECK(at(p, {k, i, j}) == double(20 * i + 5 * j + k));
        if (j % 2 == 1) CHECK(at(s, {i, j / 2, k}) == double(20 * i + 5 * j + k));
      }
    }
  for (const Tensor& v : {p, s, c, t.unsqueeze(1), t.transpose(0, -1), t.reshape({12, 5}), t.flatten(0, 1)})
    CHECK(v.storage() == t.storage());
  s.fill(-1);
  CHECK(at(t, {0, 1, 0}) == -1);
  CHECK(at(t, {0, 2, 0}) == 10);
}

TEST_CASE("slices at the edges") {
  const Tensor t = counted({5});
  CHECK(t.slice(0, -3, -1).to_vector() == Values{2, 3});
  CHECK(t.slice(0, 0, 5, 3).to_vector() == Values{0, 3});
  CHECK(t.slice(0, 5, 5).numel() == 0);
  CHECK(t.slice(0, 1, 5, 2).slice(0, 1, 2).item() == 3);
  CHECK(names(error_of([&] { t.slice(0, 2, 6); }), {"[2, 6)", "[5]"}));
  CHECK(names(error_of([&] { t.slice(0, 3, 2); }), {"[3, 2)"}));
  CHECK(names(error_of([&] { t.slice(0, 0, 5, 0); }), {"step 0"}));
  CHECK(names(error_of([&] { t.slice(1, 0, 1); }), {"dim 1", "1 dims"}));
  CHECK(names(error_of([&] { t.select(0, 5); }), {"[5]"}));
}

TEST_CASE("reshape is a view where the strides allow it and a copy elsewhere") {
  const Tensor t = counted({2, 3, 4});
  const Tensor sub = t.slice(2, 0, 2);  // [2, 3, 2], strides 12 4 1
  const Tensor merged = sub.reshape({6, 2});
  CHECK(merged.storage() == t.storage());
  CHECK(merged.strides() == Shape{4, 1});
  const Tensor split = sub.reshape({2, 3, 1, 2, 1});
  CHECK(split.storage() == t.storage());
  CHECK(split.to_vector() == sub.to_vector());
  const Tensor copied = sub.reshape({2, 6});
  CHECK(copied.storage() != t.storage());
  CHECK(copied.to_vector() == sub.to_vector());
  const Tensor turned = t.permute({2, 1, 0});
  CHECK(turned.reshape({4, -1}).to_vector() == turned.to_vector());
  CHECK(turned.reshape({-1}).storage() != t.storage());
  CHECK(t.expand({2, 3, 4}).reshape({24}).storage() == t.storage());
  CHECK(counted({3}).unsqueeze(0).expand({2, 3}).reshape({6}).to_vector() == Values{0, 1, 2, 0, 1, 2});
  CHECK(Tensor({0, 4}).reshape({2, 0, 7}).shape() == Shape{2, 0, 7});
  CHECK(zeros({4, 0}).transpose(0, 1).reshape({0, 2, 2}).numel() == 0);
  CHECK(counted({1}).reshape({}).item() == 0);
}

TEST_CASE("refused reshapes name both shapes") {
  const Tensor t = counted({2, 3});
  CHECK(names(error_of([&] { t.reshape({4, 2}); }), {"[2, 3]", "[4, 2]"}));
  CHECK(names(error_of([&] { t.reshape({4, -1}); }), {"[2, 3]", "[4, -1]"}));
  CHECK(names(error_of([&] { t.reshape({-1, -1}); }), {"[-1, -1]"}));
  CHECK(names(error_of([&] { t.reshape({-2, -3}); }), {"[-2, -3]"}));
  CHECK(names(error_of([&] { t.reshape({-1, -6}); }), {"[-1, -6]"}));
}

TEST_CASE("broadcasting follows the last dims") {
  CHECK(broadcast_shapes({2, 3}, {3}, "x") == Shape{2, 3});
  CHECK(broadcast_shapes({2, 1}, {1, 3}, "x") == Shape{2, 3});
  CHECK(broadcast_shapes({}, {4, 1}, "x") == Shape{4, 1});
  CHECK(broadcast_shapes({1}, {0}, "x") == Shape{0});
  CHECK(names(error_of([] { broadcast_shapes({2, 3}, {2}, "add"); }), {"add", "[2, 3]", "[2]"}));
  const Tensor e = counted({3, 1}).expand({2, 3, 4});
  CHECK(e.strides() == Shape{0, 1, 0});
  CHECK(e.slice(0, 1, 2).to_vector() == Values{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2});
  CHECK(names(error_of([] { counted({3}).expand({4}); }), {"[3]", "[4]"}));
  CHECK(names(error_of([] { counted({2, 3}).expand({3}); }), {"[2, 3]", "[3]"}));
}

TEST_CASE("sum_to undoes broadcasting") {
  const Tensor t = counted({2, 3, 4}, DType::f64);
  CHECK(sum_to(t, {3, 1}).to_vector() == Values{60, 92, 124});
  CHECK(sum_to(t, {4}).to_vector() == Values{60, 66, 72, 78});
  CHECK(sum_to(t, {}).item() == 276);
  CHECK(sum_to(t.permute({2, 0, 1}), {4, 1, 1}).to_vector() == Values{60, 66, 72, 78});
  CHECK(sum_to(ones({1}).expand({5, 7}), {7}).to_vector() == Values(7, 5.0));
  for (DType half : {DType::bf16, DType::f16})
    CHECK(sum_to(counted({4, 2}, half), {2}).to_vector() == Values{12, 16});
}

TEST_CASE("bf16 rounds to nearest, ties to even, and keeps NaN and infinity") {
  const auto bits = [](float x) { return bf16(x).bits; };
  CHECK(bits(1.0f) == 0x3f80);
  CHECK(bits(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // a tie: 1.0 is even
  CHECK(bits(std::bit_cast<float>(0x3f818000u)) == 0x3f82);  // a tie: the upper one is even
  CHECK(bits(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(bits(std::bit_cast<float>(0x3f817fffu)) == 0x3f81);
  CHECK(bits(-std::bit_cast<float>(0x3f808001u)) == 0xbf81);
  CHECK(bits(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(bits(std::numeric_limits<float>::infinity()) == 0x7f80);
  CHECK(bits(-0.0f) == 0x8000);
  CHECK(bits(std::bit_cast<float>(1u)) == 0);  // the smallest denormal
  CHECK(bits(std::bit_cast<float>(0x00018000u)) == 2);
  for (uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u, 0xffffffffu})
    CHECK(std::isnan(float(bf16(std::bit_cast<float>(nan)))));
  for (uint32_t u = 0; u < 0x10000; ++u) {  // every bf16 survives the way through f32
    bf16 h;
    h.bits = uint16_t(u);
    if (!std::isnan(float(h)) && bits(float(h)) != u) FAIL("bf16 bits ", u);
  }
}

TEST_CASE("f16 rounds to nearest, ties to even, with denormals, infinity and NaN") {
  const auto bits = [](float x) { return std::bit_cast<uint16_t>(f16(x)); };
  CHECK(bits(1.0f) == 0x3c00);
  CHECK(bits(1.0f + 0x1p-11f) == 0x3c00);  // tie to even
  CHECK(bits(1.0f + 3 * 0x1p-11f) == 0x3c02);
  CHECK(bits(65504.0f) == 0x7bff);
  CHECK(bits(65519.9f) == 0x7bff);
  CHECK(bits(65520.0f) == 0x7c00);
  CHECK(bits(0x1p-24f) == 1);
  CHECK(bits(0x1p-25f) == 0);
  CHECK(bits(3 * 0x1p-25f) == 2);
  CHECK(std::isnan(float(f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST_CASE("tensors convert element by element, through views too") {
  Rng rng{3, 0};
  const Tensor x = randn({7, 33}, rng).transpose(0, 1);
  const std::vector<double> exact = x.to_vector();
  const auto b = x.to(DType::bf16), h = x.to(DType::f16), d = x.to(DType::f64);
  CHECK(b.shape() == x.shape());
  CHECK(b.is_contiguous());
  for (size_t i = 0; i < exact.size(); ++i) {
    CHECK(b.to_vector()[i] == double(float(bf16(float(exact[i])))));
    CHECK(h.to_vector()[i] == double(float(f16(float(exact[i])))));
    CHECK(d.data<double>()[i] == exact[i]);
  }
  CHECK(Tensor::of({-1.5, 2.9, 200.2}, {3}).to(DType::i32).to_vector() == Values{-1, 2, 200});
  CHECK(Tensor::of({0, 255}, {2}, DType::u8).to(DType::f32).to_vector() == Values{0, 255});
  CHECK(Tensor::of({9007199254740993.0}, {1}, DType::i64).item() == 9007199254740992.0);
  CHECK(std::isnan(Tensor::of({NAN}, {1}, DType::bf16).item()));
  CHECK(names(error_of([&] { x.data<double>(); }), {"f64", "f32"}));
  CHECK(names(error_of([] { Tensor({2}, DType::f8_e4m3).to(DType::f32); }), {"f8_e4m3", "storage only"}));
}

TEST_CASE("copies are independent and follow strides") {
  const Tensor t = counted({4, 6});
  const Tensor c = t.clone();
  c.fill(9);
  CHECK(t.to_vector()[5] == 5);
  CHECK(t.contiguous().storage() == t.storage());
  const Tensor turned = t.transpose(0, 1);
  CHECK(turned.contiguous().storage() != t.storage());
  CHECK(turned.contiguous().to_vector() == turned.to_vector());
  const Tensor big = zeros({4, 6});
  big.slice(1, 0, 6, 2).copy_from(Tensor::of({1, 2, 3}, {3}));
  CHECK(big.slice(0, 3, 4).to_vector() == Values{1, 0, 2, 0, 3, 0});
  big.transpose(0, 1).copy_from(Tensor::of({7, 8, 9, 10}, {4}, DType::i32));  // converts and broadcasts
  CHECK(big.select(1, 5).to_vector() == Values{7, 8, 9, 10});
  CHECK(names(error_of([&] { big.copy_from(zeros({5, 6})); }), {"[5, 6]", "[4, 6]"}));
  CHECK(names(error_of([&] { zeros({6}).copy_from(big); }), {"[4, 6]", "[6]"}));
}

TEST_CASE("add_in_place broadcasts, scales and refuses other dtypes") {
  for (DType d : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    CAPTURE(d);
    const Tensor t = counted({2, 3}, d);
    t.add_in_place(Tensor::of({1, 2, 3}, {3}, d), 2);
    CHECK(t.to_vector() == Values{2, 5, 8, 5, 8, 11});
    t.transpose(0, 1).add_in_place(Tensor::of({1, 2}, {2}, d));
    CHECK(t.to_vector() == Values{3, 6, 9, 7, 10, 13});
  }
  CHECK(names(error_of([] { zeros({2}).add_in_place(zeros({2}, DType::f64)); }), {"f64", "f32"}));
  CHECK(names(error_of([] { zeros({2}).add_in_place(zeros({3})); }), {"[2]", "[3]"}));
}

TEST_CASE("copies give the same bytes for any number of threads") {
  const int before = num_threads();
  Rng rng{8, 0};
  const Tensor x = randn({64, 33, 65}, rng);
  set_threads(1);
  const Values one = x.permute({2, 0, 1}).to(DType::bf16).to_vector();
  const Values sum_one = sum_to(x, {33, 1}).to_vector();
  set_threads(5);
  CHECK(x.permute({2, 0, 1}).to(DType::bf16).to_vector() == one);
  CHECK(sum_to(x, {33, 1}).to_vector() == sum_one);
  set_threads(before);
}

TEST_CASE("wrong uses are refused with the value that is wrong") {
  CHECK(names(error_of([] { Tensor({2, -1}); }), {"[2, -1]"}));
  CHECK(names(error_of([] { Tensor::of({1, 2}, {3}); }), {"2 values", "[3]"}));
  CHECK(names(error_of([] { zeros({2}).item(); }), {"item", "[2]"}));
  CHECK(names(error_of([] { zeros({2, 3}).permute({0, 0}); }), {"[0, 0]"}));
  CHECK(names(error_of([] { zeros({2, 3}).permute({0}); }), {"[0]", "[2, 3]"}));
  CHECK(names(error_of([] { zeros({2, 3}).squeeze(0); }), {"[2, 3]"}));
  CHECK(names(error_of([] { zeros({2, 3}).transpose(0, 2); }), {"dim 2"}));
  CHECK(names(error_of([] { Tensor({int64_t(1) << 40, int64_t(1) << 40}); }), {"1099511627776"}));
  CHECK(names(error_of([] { Tensor({int64_t(1) << 61}); }), {"bytes"}));
  CHECK(names(error_of([] { Tensor().item(); }), {"undefined"}));
  CHECK(names(error_of([] { Tensor({2}, DType::f32, Device::meta).data<float>(); }), {"meta"}));
}

TEST_CASE("meta tensors describe without bytes") {
  const int64_t before = cpu_memory().now;
  const Tensor t({1 << 20, 1 << 20}, DType::bf16, Device::meta);
  CHECK(t.defined());
  CHECK(t.bytes() == int64_t(1) << 41);
  CHECK(t.transpose(0, 1).reshape({-1, 1024}).shape() == Shape{int64_t(1) << 30, 1024});
  CHECK(cpu_memory().now == before);
}

TEST_CASE("memory is accounted while tensors live, views included") {
  const int64_t before = cpu_memory().now;
  {
    Tensor a({1000}, DType::f64);
    CHECK(cpu_memory().now == before + 8000);
    const Tensor view = a.slice(0, 0, 1), copy = a;
    a = Tensor();
    CHECK(cpu_memory().now == before + 8000);
    const Tensor big({1 << 20}, DType::u8);
  }
  CHECK(cpu_memory().now == before);
  CHECK(cpu_memory().peak >= before + 8000 + (1 << 20));
}

TEST_CASE("a freed block serves the next tensor of its size; what is kept is bounded and told") {
  const int64_t before = cpu_memory().now;
  void* address = Tensor({1000, 1000}).raw();
  CHECK(cpu_memory().now == before);
  const int64_t spare = cpu_memory().spare;
  CHECK(spare >= 4'000'000);
  {
    const Tensor again({999, 1001});
    CHECK(again.raw() == address);
    CHECK(cpu_memory().spare <= spare - 4'000'000);
  }
  CHECK(cpu_memory().spare == spare);
  Tensors many;
  for (int i = 0; i < 40; ++i) many.emplace_back(Shape{1 << 20});
  many.clear();
  CHECK(cpu_memory().now == before);
  CHECK(cpu_memory().spare <= 128 << 20);
}

TEST_CASE("an arena gives a repeated step the same addresses") {
  Arena arena(1 << 16);
  std::vector<void*> first, second;
  const auto step = [](std::vector<void*>& addresses) {
    const Tensor a({3}), b({100}, DType::f64);
    const Tensor c = b.to(DType::f32);
    for (const Tensor& t : {a, b, c}) addresses.push_back(t.raw());
  };
  {
    const ArenaScope use(arena);
    step(first);
  }
  CHECK(arena.used() >= 3 * 4 + 800 + 400);
  arena.reset();
  CHECK(arena.used() == 0);
  {
    const ArenaScope use(arena);
    step(second);
  }
  CHECK(first == second);
  for (void* p : first) CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0);
  CHECK(arena.capacity() == 1 << 16);
}

TEST_CASE("an arena refuses a reset while a tensor lives, and more than it holds") {
  Arena arena(4096);
  Tensor kept;
  {
    const ArenaScope use(arena);
    kept = zeros({8}).slice(0, 0, 2);  // a view keeps the slot alive
    CHECK(names(error_of([] { Tensor({4096}); }), {"16384", "4096"}));
  }
  CHECK(names(error_of([&] { arena.reset(); }), {"1", "alive"}));
  kept = Tensor();
  CHECK_NOTHROW(arena.reset());
}

TEST_CASE("an arena that reuses room gives a repeated step the same addresses in the room of its living") {
  Arena arena(4096, Device::cpu, Arena::Reuse::yes);
  const auto step = [&] {
    const ArenaScope use(arena);
    std::vector<void*> at;
    Tensor kept({200});  // 800 bytes
    for (int i = 0; i < 20; ++i) {
      const Tensor small({64}), large({300 - i});
      kept = Tensor({200 + i});
      for (const Tensor& t : {small, large, kept}) at.push_back(t.raw());
      small.fill(1), large.fill(2), kept.fill(3);
      CHECK(small.data<float>()[63] == 1);
      CHECK(large.data<float>()[299 - i] == 2);
    }
    return at;
  };
  const auto first = step();
  CHECK(arena.used() == 0);
  CHECK(arena.peak() <= 4096);
  CHECK(arena.peak() >= 256 + 1200 + 800);
  arena.reset();
  CHECK(step() == first);
}

TEST_CASE("arena scopes nest and end") {
  Arena outer(4096), inner(4096);
  const ArenaScope use_outer(outer);
  {
    const ArenaScope use_inner(inner);
    const Tensor t({4});
    CHECK(inner.used() > 0);
    CHECK(outer.used() == 0);
  }
  const Tensor t({4});
  CHECK(outer.used() > 0);
}

TEST_CASE("a tensor outlives its arena") {
  Tensor kept;
  {
    Arena arena(4096);
    const ArenaScope use(arena);
    kept = full({16}, 3);
  }
  CHECK(kept.to_vector() == Values(16, 3.0));
}

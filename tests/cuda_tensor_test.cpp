// Tensors on the GPU against the same steps on the CPU: the bits must be the same.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "ops/optim.h"
#include "tensor/autograd.h"
#include "tensor/cuda.h"
#include "tensor/random.h"

using namespace rivulet;

namespace {

constexpr DType kAll[] = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};

#define NEEDS_GPU()                   \
  if (!cuda_available()) {            \
    std::printf("skipped: no GPU\n"); \
    return;                           \
  }

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(Device::cpu).contiguous(), y = b.to(Device::cpu).contiguous();
  return x.dtype() == y.dtype() && x.shape() == y.shape() &&
         std::memcmp(x.raw(), y.raw(), size_t(x.bytes())) == 0;
}

// Values that every dtype can hold: 0 .. 200.
Tensor numbers(const Shape& shape, DType dtype) {
  Rng rng{3};
  return rand_uniform(shape, 0, 200, rng).to(DType::u8).to(dtype);
}

// Views of one tensor that exercise each path of a copy.
std::vector<Tensor> views(const Tensor& x) {
  return {x,
          x.transpose(0, 2),
          x.transpose(1, 2),
          x.permute({1, 0, 2}),
          x.slice(2, 1, x.dim(2)),
          x.slice(2, 0, x.dim(2), 2),
          x.slice(1, 1, 3),
          x.slice(0, 1, 2).expand({3, x.dim(1), x.dim(2)}),
          x.slice(2, 0, 1).expand({x.dim(0), x.dim(1), 5}),
          x.select(0, 1)};
}

}  // namespace

TEST_CASE("to(Device) there and back keeps every byte, small and large") {
  NEEDS_GPU();
  for (const DType dtype : kAll)
    for (const int64_t n : {0, 1, 7, 1000, 300001, 5000003}) {
      const Tensor x = numbers({n}, dtype);
      CHECK(same_bits(x.to(Device::cuda), x));
    }
}

TEST_CASE("copies of views match on both devices, in every dtype") {
  NEEDS_GPU();
  for (const DType from : kAll)
    for (const Shape& shape : {Shape{5, 6, 7}, Shape{3, 40, 64}, Shape{4, 33, 16}}) {
      const Tensor x = numbers(shape, from), gx = x.to(Device::cuda);
      const auto on_cpu = views(x), on_gpu = views(gx);
      for (size_t i = 0; i < on_cpu.size(); ++i) {
        CAPTURE(from);
        CAPTURE(i);
        CHECK(same_bits(on_gpu[i].contiguous(), on_cpu[i].contiguous()));
        CHECK(same_bits(on_gpu[i], on_cpu[i]));  // across devices, from a view
        for (const DType to : kAll) {
          CAPTURE(to);
          CHECK(same_bits(on_gpu[i].to(to), on_cpu[i].to(to)));
          // Into a view on the other device, with conversion.
          const Tensor a = zeros(shape, to), b = zeros(shape, to, Device::cuda);
          const auto into_a = views(a), into_b = views(b);
          if (i > 6) continue;  // several places of an expanded view are one
          into_a[i].copy_from(on_gpu[i]);
          into_b[i].copy_from(on_cpu[i]);
          CHECK(same_bits(a, b));
        }
      }
    }
}

TEST_CASE("conversions of fractions round alike") {
  NEEDS_GPU();
  Rng rng{5};
  const Tensor x = randn({4097}, rng, DType::f64);
  for (const DType wide : {DType::f64, DType::f32})
    for (const DType narrow : {DType::f32, DType::bf16, DType::f16})
      CHECK(same_bits(x.to(wide).to(Device::cuda).to(narrow), x.to(wide).to(narrow)));
}

TEST_CASE("fill, zeros and add_in_place") {
  NEEDS_GPU();
  for (const DType dtype : kAll) {
    const Tensor a = zeros({4, 6, 9}, dtype), b = zeros({4, 6, 9}, dtype, Device::cuda);
    for (const Tensor& t : {a, b}) {
      t.transpose(0, 2).slice(0, 1, 5).fill(3);
      t.slice(2, 6, 9, 2).fill(7);
      t.slice(1, 0, 1).fill(0);
    }
    CHECK(same_bits(a, b));
    CHECK(same_bits(full({11}, 5, dtype), full({11}, 5, dtype, Device::cuda)));
    CHECK(same_bits(ones({11}, dtype), ones({11}, dtype, Device::cuda)));
  }
  Rng rng{7};
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    // Scales that are powers of two: the product is exact, so a fused and a plain addition agree.
    const Tensor a = randn({6, 50, 8}, rng, dtype), s = randn({50, 8}, rng, dtype);
    const Tensor b = a.to(Device::cuda), gs = s.to(Device::cuda);
    a.add_in_place(s, 0.5);
    b.add_in_place(gs, 0.5);
    CHECK(same_bits(a, b));
    a.add_in_place(a.clone(), 2);
    b.add_in_place(b.clone(), 2);
    CHECK(same_bits(a, b));
    a.transpose(0, 2).add_in_place(a.transpose(0, 2).clone(), 1);
    b.transpose(0, 2).add_in_place(b.transpose(0, 2).clone(), 1);
    CHECK(same_bits(a, b));
  }
}

TEST_CASE("sum_to adds up like the CPU, the same in every run") {
  NEEDS_GPU();
  Rng rng{9};
  struct Case {
    Shape from, to;
  };
  for (const Case& c :
       {Case{{5, 7}, {7}}, Case{{5, 7}, {5, 1}}, Case{{5, 7}, {}}, Case{{1}, {}},
        Case{{4, 300, 33}, {1, 300, 1}}, Case{{4, 300, 33}, {4, 1, 33}}, Case{{2, 5000}, {2, 1}},
        Case{{100000, 3}, {3}}, Case{{3, 100000}, {3, 1}}, Case{{1000003}, {1}}, Case{{2640, 2240}, {2240}},
        Case{{2, 3, 4, 5, 6}, {3, 1, 5, 1}}, Case{{0, 4}, {4}}})
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      const Tensor x = randn(c.from, rng, dtype), gx = x.to(Device::cuda);
      const Tensor want = sum_to(x.to(DType::f64), c.to), got = sum_to(gx, c.to);
      CHECK(same_bits(got, sum_to(gx, c.to)));
      const auto w = want.to_vector(), g = got.to_vector();
      const double terms = double(c.from.numel()) / std::max<double>(1, double(c.to.numel()));
      const double eps = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 3e-7 : 0x1p-8;
      CAPTURE(c.from);
      CAPTURE(c.to);
      CAPTURE(dtype);
      for (size_t i = 0; i < w.size(); ++i)
        CHECK(std::abs(g[i] - w[i]) <= eps * (std::abs(w[i]) + 4 * std::sqrt(terms)));
      if (x.dims() == 2) {
        const auto t = sum_to(gx.transpose(0, 1), {gx.dim(1), 1}).to_vector();
        const auto u = sum_to(x.to(DType::f64), {1, x.dim(1)}).to_vector();
        for (size_t i = 0; i < t.size(); ++i)
          CHECK(std::abs(t[i] - u[i]) <= eps * (std::abs(u[i]) + 4 * std::sqrt(double(x.dim(0)))));
      }
    }
}

TEST_CASE("a seed draws the same bits on both devices") {
  NEEDS_GPU();
  for (const uint64_t offset : {0, 1, 2, 3, 6, 1000001})
    for (const int64_t n : {1, 2, 3, 5, 100003})
      for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
        Rng a{77, offset}, b{77, offset};
        CHECK(same_bits(randn({n}, a, dtype), randn({n}, b, dtype, Device::cuda)));
        CHECK(
            same_bits(rand_uniform({n}, -3, 5, a, dtype), rand_uniform({n}, -3, 5, b, dtype, Device::cuda)));
        CHECK(a.offset == b.offset);
      }
  Rng a{1}, b{1};
  CHECK(same_bits(randn({8 << 20}, a), randn({8 << 20}, b, DType::f32, Device::cuda)));
}

TEST_CASE("an arena on the GPU gives the same addresses every step") {
  NEEDS_GPU();
  Arena arena(1 << 20, Device::cuda);
  void* first[2] = {};
  for (void*& p : first) {
    {
      const ArenaScope use(arena);
      const Tensor a({100}, DType::f32, Device::cuda), b = zeros({3, 5}, DType::bf16, Device::cuda);
      p = b.raw();
      CHECK_THROWS_WITH_AS(arena.reset(), doctest::Contains("still alive"), Error);
    }
    arena.reset();
  }
  CHECK(first[0] == first[1]);
  const ArenaScope use(arena);
  CHECK_THROWS_WITH_AS(Tensor({1 << 20}, DType::f32, Device::cuda), doctest::Contains("asked for"), Error);
}

TEST_CASE("memory is counted, and running out says what was asked and what is held") {
  NEEDS_GPU();
  const int64_t before = cuda_memory().now;
  {
    const Tensor x({1000}, DType::f32, Device::cuda);
    CHECK(cuda_memory().now == before + 4000);
    CHECK(cuda_memory().peak >= before + 4000);
    CHECK_THROWS_WITH_AS(Tensor({int64_t(1) << 42}, DType::u8, Device::cuda),
                         doctest::Contains("asked for 4398046511104 bytes, tensors hold"), Error);
  }
  CHECK(cuda_memory().now == before);
  {
    Arena limited(1 << 20, Device::cuda);
    const ArenaScope use(limited);
    const Tensor held({1 << 18}, DType::u8, Device::cuda);
    CHECK_THROWS_WITH_AS(Tensor({1 << 20}, DType::u8, Device::cuda),
                         doctest::Contains("asked for 1048576 bytes, 262144 of 1048576 are in use"), Error);
  }
  CHECK(cuda_memory().now == before);
  CHECK(full({3}, 2, DType::f32, Device::cuda).to_vector() == std::vector<double>{2, 2, 2});
}

TEST_CASE("gradients flow across devices, and the first NaN is named") {
  NEEDS_GPU();
  Tensor x = Tensor::of({1, 2, 3}, {3}).set_requires_grad();
  const Tensor y = x.to(Device::cuda).reshape({3, 1}).expand({3, 4});
  backward(y, full({3, 4}, 2, DType::f32, Device::cuda));
  CHECK(x.grad().device() == Device::cpu);
  CHECK(x.grad().to_vector() == std::vector<double>{8, 8, 8});
  const AnomalyMode on;
  const Tensor bad = full({1000}, 1, DType::f32, Device::cuda);
  CHECK_NOTHROW(record("fine", bad, Tensors{}, BackwardOne{}));
  bad.slice(0, 999, 1000).fill(std::nan(""));
  CHECK_THROWS_WITH_AS(record("spoiled", bad, Tensors{}, BackwardOne{}), doctest::Contains("spoiled"), Error);
}

TEST_CASE("training state is updated like on the CPU") {
  NEEDS_GPU();
  for (const int64_t n : {1, 5, 100003}) {
    Rng rng{13};
    Tensor w = randn({n}, rng), g = randn({n}, rng), m = randn({n}, rng), v = rand_uniform({n}, 0, 1, rng);
    Tensor gw = w.to(Device::cuda), gg = g.to(Device::cuda), gm = m.to(Device::cuda), gv = v.to(Device::cuda);
    const AdamwStep step{1e-2, 0.9, 0.99, 1e-8, 0.1, 3, 0.5};
    adamw_update(w, g, m, v, step);
    adamw_update(gw, gg, gm, gv, step);
    ema_update(m, w, 0.9);
    ema_update(gm, gw, 0.9);
    for (const auto& [a, b] : {std::pair{w, gw}, {m, gm}, {v, gv}}) {
      const auto x = a.to_vector(), y = b.to_vector();
      for (size_t i = 0; i < x.size(); ++i) CHECK(std::abs(x[i] - y[i]) <= 1e-6 * (1 + std::abs(x[i])));
    }
    CHECK(sum_of_squares(gg) == doctest::Approx(sum_of_squares(g)).epsilon(1e-12));
    CHECK(sum_of_squares(gg) == sum_of_squares(gg));
  }
}

// The gated delta net against its published recurrence. Its gradients: gradcheck_test.
#include "ops/gdn.h"

#include <doctest/doctest.h>

#include "tests/op_fixtures.h"

using namespace rivulet;

namespace {

// The recurrence as it is published: the state is [value, key] and every frame writes the error of reading
// it.
GdnResult gdn_recurrent(const Tensors& in, const GdnState& start, bool reverse_scan, double eps) {
  const Reader q(in[0]), k(in[1]), qr(in[2]), kr(in[3]), v(in[4]), beta(in[5]), decay(in[6]);
  const int64_t nb = in[0].dim(0), nt = in[0].dim(1), ns = in[0].dim(2), nh = in[0].dim(3), nd = in[0].dim(4);
  Tensor num = zeros(in[0].shape(), DType::f64), den = zeros(in[5].shape(), DType::f64);
  GdnState last{zeros({nb, nh, nd, nd}, DType::f64), zeros({nb, nh, nd}, DType::f64)};
  for (int64_t b = 0; b < nb; ++b)
    for (int64_t h = 0; h < nh; ++h) {
      std::vector<double> state(nd * nd), z(nd);
      const auto absorb = [&](int64_t f) {
        const double g = decay({b, f, h});
        for (double& x : state) x *= g;
        for (double& x : z) x *= g;
        std::vector<double> next = state, next_z = z;
        for (int64_t s = 0; s < ns; ++s) {
          const double w = beta({b, f, s, h});
          double read_z = 0;
          for (int64_t i = 0; i < nd; ++i) read_z += k({b, f, s, h, i}) * z[i];
          for (int64_t i = 0; i < nd; ++i) next_z[i] += k({b, f, s, h, i}) * w * (1 - read_z);
          for (int64_t o = 0; o < nd; ++o) {
            double read = 0;
            for (int64_t i = 0; i < nd; ++i) read += state[o * nd + i] * kr({b, f, s, h, i});
            for (int64_t i = 0; i < nd; ++i)
              next[o * nd + i] += (v({b, f, s, h, o}) - read) * w * kr({b, f, s, h, i});
          }
        }
        state = next;
        z = next_z;
      };
      const auto read = [&](int64_t f) {
        for (int64_t s = 0; s < ns; ++s) {
          const int64_t token = ((b * nt + f) * ns + s) * nh + h;
          for (int64_t i = 0; i < nd; ++i) {
            den.data<double>()[token] += z[i] * q({b, f, s, h, i});
            for (int64_t o = 0; o < nd; ++o)
              num.data<double>()[token * nd + o] += state[o * nd + i] * qr({b, f, s, h, i});
          }
        }
      };
      for (int64_t f = nt - 1; reverse_scan && f >= 0; --f) {
        read(f);  // before absorbing: the own frame is left out
        absorb(f);
      }
      const Reader start_kv(start.kv), start_z(start.z);
      for (int64_t o = 0; o < nd; ++o) {
        z[o] = start_z({b, h, o});
        for (int64_t i = 0; i < nd; ++i) state[o * nd + i] = start_kv({b, h, o, i});
      }
      for (int64_t f = 0; f < nt; ++f) {
        absorb(f);
        read(f);
      }
      std::copy(state.begin(), state.end(), last.kv.data<double>() + (b * nh + h) * nd * nd);
      std::copy(z.begin(), z.end(), last.z.data<double>() + (b * nh + h) * nd);
    }
  for (int64_t i = 0; i < num.numel(); ++i) num.data<double>()[i] /= den.data<double>()[i / nd] + eps;
  return {num, last};
}

// Inputs of gdn as its op case makes them: q, k, q_rot, k_rot, v, beta, decay, start.kv, start.z.
Tensors gdn_inputs(int64_t b, int64_t t, int64_t s, int64_t h, int64_t d, DType dtype, uint64_t seed) {
  const Shape x{b, t, s, h, d};
  const Shapes shapes = {x, x, x, x, x, {b, t, s, h}, {b, t, h}, {b, h, d, d}, {b, h, d}};
  Rng rng{seed};
  Tensors in;
  for (size_t i = 0; i < shapes.size(); ++i) in.push_back(gdn_case().fill(shapes[i], int(i), rng, dtype));
  return in;
}

GdnResult run_gdn(const Tensors& in, const GdnState& start, bool reverse_scan) {
  return gdn(in[0], in[1], in[2], in[3], in[4], in[5], in[6], start, reverse_scan);
}

}  // namespace

TEST_CASE("gdn: the phase form equals the published recurrence") {
  for (const bool reverse_scan : {false, true}) {
    const Tensors in = gdn_inputs(2, 4, 7, 3, 5, DType::f64, 6);
    const GdnState start{in[7], in[8]};
    const GdnResult got = run_gdn(in, start, reverse_scan),
                    want = gdn_recurrent(in, start, reverse_scan, double(1e-8f));
    CHECK(distance(got.out, want.out) < 1e-12);
    CHECK(distance(got.final.kv, want.final.kv) < 1e-12);
    CHECK(distance(got.final.z, want.final.z) < 1e-12);
    Tensors f32;
    for (const Tensor& x : in) f32.push_back(x.to(DType::f32));
    CHECK(distance(run_gdn(f32, {f32[7], f32[8]}, reverse_scan).out, want.out) < 1e-5);
  }
}

TEST_CASE("gdn: streaming chunks with the carried state equals one forward scan over all frames") {
  const Tensors in = gdn_inputs(1, 7, 6, 2, 4, DType::f64, 7);
  const GdnResult whole = run_gdn(in, {}, false);
  GdnState state;
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 4}, {4, 7}}) {
    Tensors chunk;
    for (int i = 0; i < 7; ++i) chunk.push_back(in[i].slice(1, begin, end));
    const GdnResult part = run_gdn(chunk, state, false);
    CHECK(distance(part.out, whole.out.slice(1, begin, end)) < 1e-12);
    state = part.final;
  }
  CHECK(distance(state.kv, whole.final.kv) < 1e-12);
  CHECK(distance(state.z, whole.final.z) < 1e-12);
}

TEST_CASE("gdn: the reverse scan leaves the final state alone, and the last frame sees only the past") {
  const Tensors in = gdn_inputs(1, 3, 5, 2, 4, DType::f64, 8);
  const GdnResult forward = run_gdn(in, {in[7], in[8]}, false), both = run_gdn(in, {in[7], in[8]}, true);
  CHECK(both.final.kv.to_vector() == forward.final.kv.to_vector());
  CHECK(both.out.select(1, 2).to_vector() == forward.out.select(1, 2).to_vector());
  CHECK(distance(both.out.select(1, 0), forward.out.select(1, 0)) > 1e-3);
}

TEST_CASE("gdn: only the final state is asked for its gradient") {
  Tensors in = gdn_inputs(1, 2, 3, 1, 2, DType::f64, 9);
  for (Tensor& x : in) x.set_requires_grad();
  const GdnResult r = run_gdn(in, {in[7], in[8]}, true);
  backward(r.final.z, ones(r.final.z.shape(), DType::f64));
  CHECK(distance(in[0].grad(), zeros_like(in[0])) == 0);
  CHECK(in[1].grad().to_vector() != zeros_like(in[1]).to_vector());
}

TEST_CASE("gdn: results and gradients are the same bits for any number of threads") {
  const Tensors gdn_in = gdn_inputs(2, 3, 40, 2, 8, DType::f32, 15);
  check_same_for_any_threads([&] { return with_gradients(gdn_in, gdn_case().run); });
}

TEST_CASE("gdn: half inputs, and wrong shapes are refused") {
  check_half(gdn_case(), gdn_inputs(1, 2, 8, 2, 8, DType::f32, 17));
  const Tensor t = zeros({1, 2, 3, 4, 5}), beta = zeros({1, 2, 3, 4}), decay = zeros({1, 2, 4});
  CHECK_THROWS_AS(gdn(t, t, t, t, t, beta, beta, {}, true), Error);
  CHECK_THROWS_AS(gdn(t, t, t, t, t, beta, decay, {zeros({1, 4, 5, 4}), {}}, true), Error);
}

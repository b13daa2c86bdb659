#include "ops/parity.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>

#include "tensor/autograd.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace {

enum class View { dense, transposed, spaced, shifted };
constexpr const char* kViewNames[] = {"dense", "transposed", "every second element", "shifted by one"};

// The same values behind other strides.
Tensor as_view(const Tensor& x, View view) {
  if (view == View::dense || x.dims() == 0) return x;
  if (view == View::transposed) return x.transpose(0, -1).clone().transpose(0, -1);
  const int64_t n = x.dim(-1), step = view == View::spaced ? 2 : 1;
  Shape larger = x.shape();
  larger[x.dims() - 1] = 1 + n * step;
  const Tensor holder = zeros(larger, x.dtype(), x.device()).slice(-1, 1, 1 + n * step, step);
  holder.copy_from(x);
  return holder;
}

bool differentiated(const OpCase& op, const Tensors& inputs, size_t i) {
  return is_floating(inputs[i].dtype()) && (op.differentiable.empty() || op.differentiable[i]);
}

// Results, then gradients of the differentiated inputs; a gradient may be undefined.
struct Values {
  Tensors results, gradients;
};

// cotangents[i] belongs to result i; given an rng, they are drawn first.
Values run(const OpCase& op, const Tensors& inputs, Tensors& cotangents, DType dtype, Rng* rng) {
  Tensors leaves;
  for (size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].detach());
    if (differentiated(op, inputs, i)) leaves.back().set_requires_grad();
  }
  const Tensors ys = op.run(leaves);
  Values values;
  Tensors roots, seeds;
  for (size_t i = 0; i < ys.size(); ++i) {
    values.results.push_back(ys[i].detach());
    if (rng) cotangents.push_back(randn(ys[i].shape(), *rng, dtype));
    if (!ys[i].requires_grad()) continue;
    roots.push_back(ys[i]);
    seeds.push_back(cotangents[i].to(ys[i].dtype()).to(ys[i].device()));
  }
  if (!roots.empty()) backward(roots, seeds);
  for (size_t i = 0; i < leaves.size(); ++i)
    if (differentiated(op, inputs, i)) values.gradients.push_back(leaves[i].grad());
  return values;
}

constexpr int64_t kReserve = 4096;  // for fill()'s own value

// The same with every allocation in memory full of NaN (all bits set); the values are dense CPU copies.
Values run_poisoned(const OpCase& op, const Tensors& inputs, Tensors& cotangents, Arena& arena,
                    const ParityRow& row, Device device) {
  {
    const ArenaScope use(arena);
    Tensor({(arena.capacity() - kReserve) / 8}, DType::i64, device).fill(-1);
  }
  arena.reset();
  Values values;
  {
    const ArenaScope use(arena);
    values = run(op, inputs, cotangents, row.dtype, nullptr);
  }
  for (Tensors* list : {&values.results, &values.gradients})
    for (Tensor& t : *list)
      if (t) t = t.to(Device::cpu).clone();
  arena.reset();
  return values;
}

// combine(f(i)) over 0 .. n - 1 on all threads, in pieces whose bounds do not depend on the threads.
template <class F, class Combine>
double over_all(int64_t n, F&& f, Combine&& combine) {
  constexpr int64_t kPiece = 1 << 16;
  std::vector<double> parts(size_t((n + kPiece - 1) / kPiece));
  parallel_for(n, kPiece, [&](int64_t begin, int64_t end) {
    double part = 0;
    for (int64_t i = begin; i < end; ++i) part = combine(part, f(i));
    parts[size_t(begin / kPiece)] = part;
  });
  double total = 0;
  for (double part : parts) total = combine(total, part);
  return total;
}

Tensor as_f64(const Tensor& x) { return x.to(Device::cpu).to(DType::f64).contiguous(); }

double rms(const Tensor& x) {
  if (!x || x.numel() == 0) return 0;
  const Tensor wide = as_f64(x);
  const double* p = wide.data<double>();
  const double squares = over_all(
      x.numel(), [p](int64_t i) { return p[i] * p[i]; }, std::plus<>());
  return std::sqrt(squares / double(x.numel()));
}

// `floor` is what rms(want) counts as at least.
double error(const Tensor& got, const Tensor& want, double floor) {
  if (!want) return got ? std::nan("") : 0;
  if (!got || got.shape() != want.shape()) return std::nan("");
  const Tensor wide_got = as_f64(got), wide_want = as_f64(want);
  const double *g = wide_got.data<double>(), *w = wide_want.data<double>();
  const double size = std::max(rms(want), floor);
  const bool integers = !is_floating(got.dtype());
  const auto relative = [=](int64_t i) {
    const double d = std::abs(g[i] - w[i]);
    return g[i] == w[i] || (integers && d <= 1) ? 0 : d / (std::abs(w[i]) + size);
  };
  const auto worse = [](double a, double b) { return std::isnan(a) || b <= a ? a : b; };  // keeps a NaN
  return over_all(want.numel(), relative, worse);
}

bool same_bits(const Tensors& a, const Tensors& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (bool(a[i]) != bool(b[i])) return false;
    if (a[i] && std::memcmp(a[i].raw(), b[i].raw(), size_t(a[i].bytes())) != 0) return false;
  }
  return true;
}

void check_shapes(const OpCase& op, const Shapes& shapes, Device device, Arena& arena, ParityRow& row) {
  Rng rng{29};
  Tensors inputs, wide;
  // On large shapes f32 is far more exact than bf16 can be told from, and twice as fast as f64.
  const DType reference = row.bench && row.dtype == DType::bf16 ? DType::f32 : DType::f64;
  for (size_t i = 0; i < shapes.size(); ++i) {
    inputs.push_back(op.fill ? op.fill(shapes[i], int(i), rng, row.dtype) : randn(shapes[i], rng, row.dtype));
    wide.push_back(is_floating(inputs[i].dtype()) ? inputs[i].to(reference) : inputs[i]);
  }
  Tensors cotangents;
  const Values want = run(op, wide, cotangents, row.dtype, &rng);
  for (const View view : {View::dense, View::transposed, View::spaced, View::shifted}) {
    if (row.bench && view != View::dense) break;
    Tensors on_device;
    for (const Tensor& x : inputs) on_device.push_back(as_view(x.to(device), view));
    std::string where = kViewNames[int(view)];
    for (const Shape& s : shapes) where += " " + (std::ostringstream() << s).str();
    Values got[2];
    for (Values& v : got) v = run_poisoned(op, on_device, cotangents, arena, row, device);
    if (got[0].results.size() != want.results.size()) fail("another number of results, ", where);
    const auto worse = [&](double& worst, const Tensors& g, const Tensors& w) {
      double largest = 0;
      for (const Tensor& t : w) largest = std::max(largest, rms(t));
      for (size_t i = 0; i < w.size(); ++i) {
        const double e = error(g[i], w[i], 0.1 * largest);
        if (std::isnan(worst) || e <= worst) continue;
        if (!(e <= std::max(row.forward, row.backward))) row.worst_at = where;
        worst = e;
      }
    };
    worse(row.forward, got[0].results, want.results);
    worse(row.backward, got[0].gradients, want.gradients);
    if (!same_bits(got[0].results, got[1].results) || !same_bits(got[0].gradients, got[1].gradients))
      row.failure = "the second run gave other bits, " + where;
  }
}

}  // namespace

double parity_tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-5 : dtype == DType::bf16 ? 0x1p-7 : 0x1p-10;
}

ParityRow check_parity(const OpCase& op, Device device, DType dtype, bool bench) {
  ParityRow row{.op = op.name, .dtype = dtype, .bench = bench};
  row.tolerance = dtype == DType::bf16 && op.bf16_tolerance > 0 ? op.bf16_tolerance : parity_tolerance(dtype);
  const auto start = std::chrono::steady_clock::now();
  try {
    const std::vector<Shapes>& all = bench ? op.bench : op.check;
    double largest = 0;
    for (const Shapes& shapes : all) largest = std::max(largest, bytes_of(shapes));
    constexpr double kRoom = 32;  // a composed op and its gradient hold many times what they read
    const int64_t bytes = bench ? int64_t(4) << 30 : std::max(int64_t(4) << 20, int64_t(kRoom * largest));
    Arena arena(bytes, device);
    for (const Shapes& shapes : all) check_shapes(op, shapes, device, arena, row);
  } catch (const std::exception& e) {
    row.failure = e.what();
  }
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return row;
}

std::string to_string(const ParityRow& row) {
  char line[160];
  std::snprintf(line, sizeof(line), "%-22s %-5s %-6s %9.1e %9.1e %6.2f  ", row.op.c_str(), name_of(row.dtype),
                row.bench ? "bench" : "check", row.forward, row.backward, row.seconds);
  const std::string verdict = row.passed()           ? "ok"
                              : !row.failure.empty() ? "FAILED: " + row.failure
                                                     : "FAILED at " + row.worst_at;
  return line + verdict;
}

}  // namespace rivulet

#include "ops/shape.h"

#include "tensor/autograd.h"

namespace rivulet {

Tensor cat(const Tensors& xs, int dim) {
  check(!xs.empty(), "cat: no tensors");
  const Tensor& first = xs[0];
  dim = wrap_dim(dim, first.dims(), "cat");
  Shape shape = first.shape();
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const Tensor& x : xs) {
    check(x.dtype() == first.dtype() && x.device() == first.device(), "cat: ", x.dtype(), " on ", x.device(),
          " beside ", first.dtype(), " on ", first.device());
    bool fits = x.dims() == first.dims();
    for (int i = 0; fits && i < x.dims(); ++i) fits = i == dim || x.shape()[i] == shape[i];
    check(fits, "cat: shapes ", first.shape(), " and ", x.shape(), " along dim ", dim);
    sizes.push_back(x.dim(dim));
    total += x.dim(dim);
  }
  shape[dim] = total;
  const Tensor y(shape, first.dtype(), first.device());
  int64_t at = 0;
  for (const Tensor& x : xs) {
    y.slice(dim, at, at + x.dim(dim)).copy_from(x.detach());
    at += x.dim(dim);
  }
  return record("cat", y, xs, [sizes, dim](const Tensor& dy) -> Tensors { return split(dy, sizes, dim); });
}

Tensor stack(const Tensors& xs, int dim) {
  check(!xs.empty(), "stack: no tensors");
  dim = wrap_dim(dim, xs[0].dims() + 1, "stack");
  Tensors parts;
  for (const Tensor& x : xs) {
    check(x.shape() == xs[0].shape(), "stack: shapes ", xs[0].shape(), " and ", x.shape());
    parts.push_back(x.unsqueeze(dim));
  }
  return cat(parts, dim);
}

Tensor pad(const Tensor& x, int dim, int64_t before, int64_t after) {
  dim = wrap_dim(dim, x.dims(), "pad");
  check(before >= 0 && after >= 0, "pad: ", before, " before and ", after, " after");
  Shape shape = x.shape();
  shape[dim] += before + after;
  const Tensor y = zeros(shape, x.dtype(), x.device());
  const int64_t end = before + x.dim(dim);
  y.slice(dim, before, end).copy_from(x.detach());
  return record("pad", y, {x}, [=](const Tensor& dy) -> Tensors { return {dy.slice(dim, before, end)}; });
}

Tensors split(const Tensor& x, const std::vector<int64_t>& sizes, int dim) {
  dim = wrap_dim(dim, x.dims(), "split");
  int64_t total = 0;
  for (int64_t n : sizes) total += n;
  check(total == x.dim(dim), "split: sizes add up to ", total, ", dim ", dim, " of shape ", x.shape());
  const Tensor data = x.detach();
  Tensors ys;
  std::vector<Shape> shapes;
  int64_t at = 0;
  for (int64_t n : sizes) {
    ys.push_back(data.slice(dim, at, at + n));
    shapes.push_back(ys.back().shape());
    at += n;
  }
  return record("split", ys, {x},
                [shapes, dim, dtype = x.dtype(), device = x.device()](const Tensors& dys) -> Tensors {
                  Tensors whole = dys;  // zeros for the parts that nothing used
                  for (size_t i = 0; i < whole.size(); ++i)
                    if (!whole[i]) whole[i] = zeros({}, dtype, device).expand(shapes[i]);
                  return {cat(whole, dim)};
                });
}

Tensors chunk(const Tensor& x, int n, int dim) {
  check(n > 0 && x.dim(dim) % n == 0, "chunk: ", n, " parts of dim ", dim, " of shape ", x.shape());
  return split(x, std::vector<int64_t>(size_t(n), x.dim(dim) / n), dim);
}

// --- Cases -------------------------------------------------------------------------------------------

namespace {

OpCase copy_case(const char* name, Tensors (*run)(const Tensors&), std::vector<Shapes> check, Shapes bench) {
  return {.name = name,
          .run = run,
          .check = std::move(check),
          .bench = {std::move(bench)},
          .bytes = [](const Shapes& s) { return 2 * bytes_of(s); },
          .flops = [](const Shapes&) { return 0.0; }};
}

}  // namespace

const OpCase& cat_case() {
  static const OpCase the_case =
      copy_case("cat",
                [](const Tensors& in) -> Tensors {
                  return {cat(in, in[0].dims() - 1), cat({in[0], in[0]}, 0)};
                },
                {{{3, 2}, {3, 5}}, {{1}, {1}, {2}}, {{2, 3, 4}, {2, 3, 1}}}, {{1728, 384}, {1728, 384}});
  return the_case;
}
const OpCase& stack_case() {
  static const OpCase the_case = copy_case("stack",
                                           [](const Tensors& in) -> Tensors {
                                             return {stack(in, 1), stack(in, -1)};
                                           },
                                           {{{3, 2}, {3, 2}}, {{1}, {1}}, {{2, 3, 4}, {2, 3, 4}, {2, 3, 4}}},
                                           {{1728, 384}, {1728, 384}});
  return the_case;
}
const OpCase& pad_case() {
  static const OpCase the_case = copy_case("pad",
                                           [](const Tensors& in) -> Tensors {
                                             return {pad(in[0], 0, 1, 2), pad(in[0], -1, 2, 0)};
                                           },
                                           {{{3, 2}}, {{1}}, {{2, 3, 4}}}, {{1728, 768}});
  return the_case;
}
const OpCase& split_case() {
  static const OpCase the_case =
      copy_case("split",
                [](const Tensors& in) -> Tensors {
                  const int64_t c = in[0].dim(-1);
                  const Tensors parts = split(in[0], {1, c - 1}, -1);
                  return {parts[1], parts[0], split(in[0], {c - 1, 1}, -1)[0]};  // one part unused
                },
                {{{3, 4}}, {{2}}, {{2, 3, 5}}}, {{1728, 768}});
  return the_case;
}

}  // namespace rivulet

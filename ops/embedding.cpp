#include "ops/embedding.h"

#include "tensor/autograd.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {

void embedding(const Tensor& ids, const Tensor& table, Tensor& y) {
  const int64_t *id = ids.data<int64_t>(), vocabulary = table.dim(0);
  for (int64_t i = 0; i < ids.numel(); ++i)
    check(id[i] >= 0 && id[i] < vocabulary, "embedding: id ", id[i], " at ", i, ", the table has ",
          vocabulary, " rows");
  const int64_t row_bytes = table.dim(1) * size_of(table.dtype());
  parallel_for(ids.numel(), std::max<int64_t>(1, (256 << 10) / std::max<int64_t>(1, row_bytes)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i)
                   std::memcpy(static_cast<char*>(y.raw()) + i * row_bytes,
                               static_cast<const char*>(table.raw()) + id[i] * row_bytes, size_t(row_bytes));
               });
}

void embedding_backward(const Tensor& g, const Tensor& ids, Tensor& dtable) {
  dispatch_real(g.dtype(), "embedding", [&]<class T>() {
    const int64_t* id = ids.data<int64_t>();
    const int64_t c = dtable.dim(1);
    // Shared out by columns: each thread adds the rows in the same order.
    parallel_for(c, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < ids.numel(); ++i) {
        const T* from = g.data<T>() + i * c;
        T* to = dtable.data<T>() + id[i] * c;
        for (int64_t j = begin; j < end; ++j) to[j] += from[j];
      }
    });
  });
}

}  // namespace cpu

Tensor embedding(const Tensor& ids, const Tensor& table) {
  check(ids.dtype() == DType::i64, "embedding: ids are ", ids.dtype(), ", not i64");
  check(table.dims() == 2, "embedding: table has shape ", table.shape(), ", wanted [V, C]");
  check(is_floating(table.dtype()), "embedding: the table is ", table.dtype());
  Shape shape = ids.shape();
  shape.push_back(table.dim(1));
  const Tensor flat = ids.contiguous().reshape({ids.numel()});
  Tensor y(shape, table.dtype(), table.device());
  const Tensor rows = table.detach().contiguous();
  ON_DEVICE(table, embedding(flat, rows, y));
  return record("embedding", y, {table}, [flat, full = table.shape()](const Tensor& dy) -> Tensors {
    const bool half = is_half(dy.dtype());
    const Tensor g = (half ? dy.to(DType::f32) : dy).contiguous().reshape({flat.numel(), full[1]});
    Tensor dtable = zeros(full, g.dtype(), g.device());
    ON_DEVICE(g, embedding_backward(g, flat, dtable));
    return {dtable.to(dy.dtype())};
  });
}

const OpCase& embedding_case() {
  static const OpCase the_case = {
      .name = "embedding",
      .run = [](const Tensors& in) -> Tensors { return {embedding(in[0], in[1])}; },
      .check = {{{2, 3}, {4, 5}}, {{1}, {1, 1}}, {{40}, {6, 130}}},
      .bench = {{{300}, {32000, 768}}},
      .bytes = [](const Shapes& s) { return 8.0 * s[0].numel() + 8.0 * double(s[0].numel() * s[1][1]); },
      .flops = [](const Shapes&) { return 0.0; },
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            if (i == 1) return randn(shape, rng, dtype);
            Tensor ids(shape, DType::i64);  // every table in the list has at least one row
            for (int64_t k = 0; k < ids.numel(); ++k)
              ids.data<int64_t>()[k] = k * 7 % std::min<int64_t>(4, shape.numel());
            return ids;
          }};
  return the_case;
}

}  // namespace rivulet

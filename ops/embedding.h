// y = table[ids]: one row per id. dtable[v] = sum of dy over the places where ids == v. Saves ids.
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

// ids i64 [...], table [V, C] -> [..., C]. Throws on an id outside [0, V).
Tensor embedding(const Tensor& ids, const Tensor& table);

// Dense: ids [n], table and dtable [V, C], y and g [n, C]. dtable starts at zero.
KERNELS(void embedding(const Tensor& ids, const Tensor& table, Tensor& y);
        void embedding_backward(const Tensor& g, const Tensor& ids, Tensor& dtable);)

const OpCase& embedding_case();

}  // namespace rivulet

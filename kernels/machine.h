#pragma once
#include <string>

#include "core/dtype.h"

namespace lockstep::kernels {

// Floating-point operations a second that the forward product of a linear layer reaches here with
// operands of this type: 1024 rows, inputs and outputs, all threads, the best of several in about a
// fifth of a second. What workers share of a machine they also share here if they all measure at
// the same time.
double measured_product_rate(DType dtype);

// The library that computes matrix products, and its version: "oneDNN 2.6.3".
std::string product_library();

}  // namespace lockstep::kernels

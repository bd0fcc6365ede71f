// SPDX-License-Identifier: Apache-2.0
// The formula of quantize_per_token is that of the family: how a row becomes y, and how y becomes int8.
#pragma once

#include "quant/norm_row_math.h"
#include "quant/quantize_per_token/quantize_per_token.h"
#include "quant/rounding.h"

#include "../../csrc/stable/tensor.h"

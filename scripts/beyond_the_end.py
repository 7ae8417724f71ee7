"""Make the C++ extension read one row past the end of a tensor: the address sanitizer must abort the process."""

import torch

from ptgm_fast import _C

logits, labels = torch.zeros(4, 100), torch.zeros(5, dtype=torch.int64)
confidence, mask = torch.zeros(5), torch.zeros(5, dtype=torch.bool)
outputs = (labels.data_ptr(), confidence.data_ptr(), mask.data_ptr())
_C.pseudo_label(logits.data_ptr(), 100, 5, 100, 0, 1.0, 0.0, *outputs, 1)

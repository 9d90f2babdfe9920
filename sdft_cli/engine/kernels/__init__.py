"""Which functions of torch and other packages run a model, and whether they are right.

cudnn      attention on a GPU without cuDNN
autocast   the products of an fp32 adapter in the type of its 16-bit base
halves     frozen weights that float16 holds, read as float16 while a CPU decodes
joint      one product for several layers that read the same tensor
packed     products of a few rows with packed weights, for decoding on a CPU
products   products of fp32 matrices by 16-bit factors, where a CPU is faster with them
bound      which functions the modules of a loaded model call for the gated delta rule and its convolution
traps      installed versions whose kernels are known to raise or to be wrong
agreement  a kernel against transformers' reference: values and the gradients of all inputs
check      the three of them together on a loaded model: a sentence, or a refusal
"""

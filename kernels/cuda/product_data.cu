/* Products of a linear layer's data gradient: x (rows, k), w (k, cols). */
#include "kernels/cuda/product.cuh"

extern "C" int launch_product_data(cudaStream_t s, enum product_epilogue epilogue,
                                   const struct product *p)
{
    using namespace product_tile;
    switch (epilogue) {
    case PRODUCT_RELU_SLOPE:
        return launch<PRODUCT_DATA, PRODUCT_RELU_SLOPE>(s, p);
    case PRODUCT_GELU_SLOPE:
        return launch<PRODUCT_DATA, PRODUCT_GELU_SLOPE>(s, p);
    default:
        return ERR_UNSUPPORTED;
    }
}

KERNELS_OF(product_data,
           product_tile::product_kernel<product_tile::shape<PRODUCT_DATA>, PRODUCT_RELU_SLOPE>)

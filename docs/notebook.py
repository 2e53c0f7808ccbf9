"""finetune in a notebook: train, look at the result, classify. Runs as it is: python docs/notebook.py"""

import numpy as np
from PIL import Image

import finetune

# %% Train a new head on the embedded images. Each setting of the command line is a keyword: a section such as
# the optimizer is a dict, and the folder that the run leaves is the same.
run = finetune.fit(
    data={"source": "clipart", "image_size": 64},  # or just "clipart", or a folder of images
    freeze="all",
    head="auto",
    weights="bundled",
    epochs=5,
    optimizer={"name": "sgd", "lr": 0.02},
)
print(f"test accuracy {run.summary['test']['accuracy']:.3f}, kept in {run.folder}")

# %% Open it, now or in another session: by its folder, or finetune.load("latest").
model = finetune.load(run)
print("classes:", ", ".join(model.classes))

# %% Classify PIL images, arrays or paths. Probabilities are calibrated; finetune.load(run, raw=True) leaves
# them as they are.
photograph = Image.radial_gradient("L").resize((300, 200))
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
for prediction in model.predict([photograph, noise], top=3):
    print(prediction.label, [f"{name} {probability:.3f}" for name, probability in prediction.top])

# %% The plain torch module, for anything else: normalised images (B, 3, H, W) to logits.
network = model.to_torch()
logits = network(model.preprocess(photograph)[None])
print(type(network).__name__, tuple(logits.shape))

# The main job, and every other command, without installing anything on the machine (6.7 GB, most of it for GPUs):
#   docker build -t finetune . && docker run --rm finetune
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" finetune train pictures
# Outputs, weights and features stay in the folder that is mounted, and belong to who runs it.
# With a GPU: docker run --gpus all …
FROM python:3.13-slim
WORKDIR /finetune
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY configs configs
RUN pip install --no-cache-dir ".[heif,lite0,onnx,sweeps]"
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["finetune"]
CMD ["train", "freeze=all", "head=10"]

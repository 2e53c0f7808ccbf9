# The main job, and every other command, without installing anything on the machine:
#   docker build -t finetune . && docker run --rm finetune
#   docker run --rm -v "$PWD:/work" finetune train data=folder data.root=pictures
# With a GPU: docker run --gpus all --shm-size 2g …
FROM python:3.13-slim
WORKDIR /finetune
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY configs configs
RUN pip install --no-cache-dir .
WORKDIR /work
ENTRYPOINT ["finetune"]
CMD ["train", "freeze=all", "head=10"]

